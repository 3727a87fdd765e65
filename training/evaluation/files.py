"""Benchmark files as they are published: found, read, and named when something is wrong."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ConfigError

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a benchmark's files may lie."""

    root: Path
    """As the user gave it."""
    benchmark: str
    """For messages."""
    names: tuple[str, ...] = ()
    """Usual names of the benchmark's own folder below the root."""
    expected: str = ""
    """What the folder must hold, for messages."""

    @property
    def places(self) -> list[Path]:
        """The benchmark's own folder first, then the root."""
        own = [self.root / name for name in self.names]
        return [place for place in [*own, self.root] if place.is_dir()]

    def find(self, *patterns: str) -> Path | None:
        """Returns the first file that matches, patterns in their order; None if there is none."""
        for pattern in patterns:
            for place in self.places:
                found = sorted(path for path in place.glob(pattern) if path.is_file())
                if found:
                    return found[0]
        return None

    def need(self, *patterns: str) -> Path:
        """Returns the first file that matches.

        Raises:
            ConfigError: if there is none; it says what is expected where.
        """
        found = self.find(*patterns)
        if found is None:
            raise self.missing(" or ".join(patterns))
        return found

    def folder(self, *names: str) -> Path:
        """Returns the first folder of these names, the first name below the own folder if none."""
        places = self.places or [self.root]
        for name in names:
            for place in places:
                if (place / name).is_dir():
                    return place / name
        return places[0] / names[0]

    def parquet(self, split: str, config: str = "") -> list[Path]:
        """Returns the Parquet files of a split as the hub has them, in their order."""
        own = [config] if config else ["data", "", "*"]
        for place in self.places:
            for folder in own:
                found = sorted(place.glob(f"{folder}/{split}*.parquet".lstrip("/")))
                found = [path for path in found if _is_split(path, split)]
                if found:
                    return found
        return []

    def missing(self, what: str) -> ConfigError:
        """Returns the error of a file that is not there."""
        places = ", ".join(str(place) for place in self.places) or f"{self.root} (no such folder)"
        return ConfigError(
            f"{self.benchmark}: there is no {what} in {places}. Expected there: {self.expected}. "
            "docs/evaluation.md shows the whole folder"
        )


def _is_split(path: Path, split: str) -> bool:
    rest = path.stem.removeprefix(split)
    return not rest or rest.startswith("-")


def read_json(path: Path) -> Any:
    """Returns what is in a JSON file.

    Raises:
        ConfigError: if it is none, as one is that was cut off.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON that can be read ({error}): get it again") from error


def read_jsonl(path: Path, fields: Sequence[str] = ()) -> list[Row]:
    """Returns the objects in a JSONL file, checked to have these fields.

    Raises:
        ConfigError: if a line is none, as the last of a file is that was cut off.
    """
    rows = []
    for number, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number} is no JSON ({error}): the file is not whole, get it again"
            ) from error
        rows.append(with_fields(row, fields, f"{path}, line {number}"))
    if not rows:
        raise ConfigError(f"{path} is empty: get it again")
    return rows


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not empty, with their numbers from 1.

    Raises:
        ConfigError: if the file cannot be read as UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def with_fields(row: Any, fields: Sequence[str], where: str) -> Row:
    """Returns the row.

    Raises:
        ConfigError: if it has not all of the fields.
    """
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object, but a {type(row).__name__}")
    absent = [name for name in fields if name not in row]
    if absent:
        raise ConfigError(
            f"{where} has no {', '.join(absent)}: this is another file; expected are the fields "
            f"{', '.join(fields)}, found {', '.join(sorted(map(str, row))[:12])}"
        )
    return row


def check_whole(path: Path, absent: Sequence[Any], whole: str) -> None:
    """Raises ConfigError if a question file lacks questions that it should have.

    Args:
        absent: what it lacks.
        whole: the file that has them.
    """
    if absent:
        raise ConfigError(
            f"{path} lacks {len(absent)} questions that {whole} has ({absent[0]} …): it is of "
            "another version or not whole, get both again"
        )


def read_tsv(path: Path, fields: Sequence[str]) -> list[Row]:
    """Returns the rows of a table with a header, as texts.

    Raises:
        ConfigError: if it has not all of the columns, or a row is cut off.
    """
    csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows: list[Row] = list(reader)
            names = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise ConfigError(f"{path} has no rows: get it again")
    with_fields(dict.fromkeys(names), fields, f"{path}, its header")
    cut = next((i for i, row in enumerate(rows) if None in row.values() or None in row), None)
    if cut is not None:
        raise ConfigError(f"{path}, row {cut + 1} has not {len(names)} columns: get it again")
    return rows


def read_parquet(
    paths: Sequence[Path], columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[Path, int, Row]]:
    """Yields file, row number and row of Parquet files, pictures left where they are.

    Raises:
        ConfigError: if a file is none, or has not all of the columns.
    """
    for path in paths:
        try:
            names = pq.read_schema(path).names
            with_fields(dict.fromkeys(names), columns, f"{path}, its schema")
            wanted = [*columns, *(name for name in optional if name in names)]
            table = pq.read_table(path, columns=[name for name in wanted if name != "image"])
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"{path} is no Parquet that can be read: {error}") from error
        for number, row in enumerate(table.to_pylist()):
            yield path, number, row
