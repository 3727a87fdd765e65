"""img2dataset's table beside a tar: what it says of each sample, and of what has no image."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ReadConfig
from pipeline.read.columns import INSTRUCTION_NAMES, InputColumns, usual_columns
from pipeline.read.values import excerpt, plain_text
from schemas.errors import ConfigError
from schemas.storage import exists, open_read

TABLE_COLUMNS = ("key", "status", "error_message")
"""What img2dataset's table says of each URL that it asked, beside the input's own columns."""

Values = dict[str, Any]
"""A row of a table: column to value."""


def table_beside(tar: str) -> str | None:
    """Returns the path of the table that belongs to a tar; None where there is none with keys.

    Raises:
        ConfigError: if it cannot be read.
    """
    path = tar[: -len(".tar")] + ".parquet"
    if not exists(path):
        return None
    try:
        with open_read(path) as file:
            has_keys = "key" in pq.read_schema(file).names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path}, beside {tar}, cannot be read as parquet: {error}") from error
    return path if has_keys else None


def columns_of(values: Values, config: ReadConfig) -> InputColumns:
    """Returns what holds what, without the hashes: those are of what was once downloaded."""
    return replace(usual_columns(list(values), config), hashes=())


class TarTable:
    """The rows of a table by their keys, each given to one sample or left over."""

    def __init__(self, rows: Iterable[Values], sample_keys: Callable[[], Iterable[str]]) -> None:
        """Takes rows with a `key`.

        Args:
            sample_keys: tells the keys of all samples of the tar; called only where they lie in
                folders, which img2dataset makes none of.
        """
        self._rows: dict[str, list[Values]] = {}
        self._keyless: list[Values] = []
        self._asked: set[str] = set()
        self._sample_keys = sample_keys
        self._base_counts: Counter[str] | None = None
        for row in rows:
            if row["key"] is None:
                self._keyless.append(row)
            else:
                self._rows.setdefault(plain_text(row["key"]), []).append(row)

    def values_of(self, sample_key: str) -> Values:
        """Returns what the table says of a sample; nothing if its rows contradict each other."""
        key = self._row_key(sample_key)
        self._asked.add(key)
        rows = self._rows.get(key, [])
        return dict(rows[0]) if rows and all(row == rows[0] for row in rows) else {}

    def _row_key(self, sample_key: str) -> str:
        """Returns the key of a sample's rows: its own, or without folders if no other has that."""
        base = sample_key.rpartition("/")[2]
        if sample_key in self._rows or base == sample_key or base not in self._rows:
            return sample_key
        if self._base_counts is None:
            keys = set(self._sample_keys())
            self._base_counts = Counter(key.rpartition("/")[2] for key in keys)
        return base if self._base_counts[base] == 1 else sample_key

    def left_over(self) -> Iterator[tuple[Values, str | None]]:
        """Yields the rows that no sample was given, with what is wrong with the row itself."""
        for key, rows in self._rows.items():
            problem = None
            if len(rows) > 1:
                problem = f"the table holds {len(rows)} rows of the key {excerpt(key)}"
            for row in rows[1:] if key in self._asked else rows:
                yield row, problem
        for row in self._keyless:
            yield row, "the table's row has no key"


def read_table(
    path: str | None, config: ReadConfig, sample_keys: Callable[[], Iterable[str]]
) -> TarTable:
    """Returns the table beside a tar, as `table_beside` found it; an empty one for None."""
    if path is None:
        return TarTable((), sample_keys)
    with open_read(path) as file:
        parquet = pq.ParquetFile(file)
        names = parquet.schema_arrow.names
        columns = columns_of(dict.fromkeys(names), config)
        wanted = [columns.url, columns.caption, columns.conversations, *TABLE_COLUMNS]
        wanted += [name for name, _ in columns.kept]
        if columns.conversations is not None:
            wanted += INSTRUCTION_NAMES
        found = [name for name in dict.fromkeys(wanted) if name in names]
        return TarTable(parquet.read(columns=found).to_pylist(), sample_keys)
