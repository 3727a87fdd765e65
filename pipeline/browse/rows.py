"""All rows of a dataset, kept and rejected, found by DuckDB in its Parquet files.

A page is found in two steps: which rows are on it, by the columns that the filters and the order
name; then everything about those few. So a page of a million rows costs what those columns cost.
"""

import functools
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.browse.filters import quoted
from pipeline.dataset.conditions import checked_condition, closed_connection
from pipeline.dataset.guard import stored_config
from pipeline.dataset.manifests import refuse_no_folder
from schemas.columns import kept_fields, signal_fields, with_kept
from schemas.errors import ConfigError, DatasetError
from schemas.records import REJECTION_SCHEMA, TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import is_local, local_path
from scoring.levels.ranks import parse_rank_mean

PAGE_ROWS = 60
GROUPS = 12
EDGE_ROWS = 12
PLACE_FILE = "file_of_row"
"""The column with a row's file: by its usual name, `filename`, inputs may have a column too."""

OF_FILE = f"file_row_number, {PLACE_FILE}"

REJECTION_FIELDS = [field for field in REJECTION_SCHEMA if field.name not in TRAIN_SCHEMA.names]
ROW_SCHEMA = pa.schema([*TRAIN_SCHEMA, *REJECTION_FIELDS])
"""Of all rows, but for the input's own columns and signals: `reason` is null for what was kept."""

SCORE = "clip_score"
ORDERS = {
    "": "",
    "score, best first": "clip_score DESC NULLS LAST, key",
    "score, worst first": "clip_score ASC NULLS LAST, key",
    "largest": "width * height DESC NULLS LAST, key",
    "smallest": "width * height ASC NULLS LAST, key",
    "caption": "caption, key",
}

_PLACED_SCHEMA = pa.schema(
    [*ROW_SCHEMA, pa.field("file_row_number", pa.int64()), pa.field(PLACE_FILE, pa.string())]
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Group:
    """What stayed of a group of duplicates, and some of those that gave way to it."""

    kept: Row | None
    dropped: list[Row]
    count: int


class DatasetRows:
    """The rows of a dataset on this machine; several threads may ask for some.

    Raises:
        ConfigError: if there is no such folder on a disk of this machine.
        DatasetError: if nothing of a dataset in it is packed or rejected yet.
    """

    def __init__(self, root: str) -> None:
        if not is_local(root):
            raise ConfigError(f"browse reads a dataset on this machine: copy {root} first")
        refuse_no_folder(root)
        self.layout = DatasetLayout(str(Path(local_path(root)).resolve()))
        folder = Path(self.layout.root)
        self.packed = sorted((folder / "train").glob("*.parquet"))
        self.rejected = sorted((folder / "rejected").glob("*/*.parquet"))
        known = _schema_of(self.packed[0]) if self.packed else ROW_SCHEMA
        self.schema = with_kept(ROW_SCHEMA, kept_fields(known))
        """Of all rows; the input's own columns and signals are null where a row was rejected."""
        signals = [field.name for field in signal_fields(known)]
        self.orders = {**ORDERS, **dict(_orders_of(signals))}
        """SQL of each order, by the name that people choose it by."""
        self.ranked_by = self._ranked_by({SCORE, *signals})
        """What decides the levels, as `levels.by` has it: a column, or the mean of some's ranks."""
        if not self.packed and not self.rejected:
            raise DatasetError(
                f"{root} has nothing to look at: no train/ and no rejected/; make a dataset with "
                "`aligngpt-curate curate`"
            )
        self._places = {
            (path.parent.name, int(path.stem)): path for path in (*self.packed, *self.rejected)
        }
        self._lock = threading.Lock()
        self.condition = functools.lru_cache(256)(self._condition)
        self._connection = closed_connection([f"{self.layout.root}/"])
        self._make_view("packed", self.packed)
        self._make_view("left_out", self.rejected)
        self._connection.execute(
            "CREATE VIEW samples AS SELECT * FROM packed UNION ALL BY NAME SELECT * FROM left_out"
        )

    def _make_view(self, name: str, files: list[Path]) -> None:
        """Makes a view with the columns of all rows; what its own rows lack is null."""
        self._connection.register(f"no_{name}", _PLACED_SCHEMA.empty_table())
        found = f" UNION ALL BY NAME SELECT * FROM {_read(files)}" if files else ""
        self._connection.execute(f"CREATE VIEW {name} AS SELECT * FROM no_{name}{found}")

    def _ranked_by(self, columns: Collection[str]) -> str:
        with suppress(DatasetError):  # of another version, whose rows can be looked at all the same
            stored = stored_config(self.layout) or {}
            by = str(stored.get("levels", {}).get("by", SCORE))
            mean = parse_rank_mean(by)
            names = (by,) if mean is None else mean.names
            return by if set(names).issubset(columns) else SCORE
        return SCORE

    def _condition(self, text: str) -> str:
        """Returns the WHERE of a condition, once it was checked; empty for none.

        Raises:
            ConfigError: if it is no condition on a row alone.
        """
        if not text:
            return ""
        checked = checked_condition(text, self.schema, "the condition").text
        return f" WHERE (\n{checked}\n)"

    def _ask(self, query: str, values: list[Any] | None = None) -> list[Row]:
        with self._lock:
            found = self._connection.execute(query, values or [])
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def count(self, condition: str) -> int:
        """Returns how many rows fulfil a condition.

        Raises:
            ConfigError: if it is none.
        """
        return int(
            self._found(f"SELECT count(*) AS n FROM samples{self.condition(condition)}")[0]["n"]
        )

    def page(self, condition: str, order: str, number: int, size: int = PAGE_ROWS) -> list[Row]:
        """Returns the rows of a page, the first being 0.

        Args:
            order: one of `orders`.

        Raises:
            ConfigError: if the condition is none.
        """
        by = f" ORDER BY {self.orders[order]}" if self.orders.get(order) else ""
        return self._whole(
            f"SELECT {OF_FILE} FROM samples{self.condition(condition)}{by} "
            f"LIMIT {size} OFFSET {number * size}"
        )

    def _found(self, query: str) -> list[Row]:
        try:
            return self._ask(query)
        except duckdb.Error as error:
            raise ConfigError(f"this cannot be computed: {str(error).splitlines()[0]}") from error

    def _whole(self, query: str) -> list[Row]:
        """Returns all that is known of rows that a query finds by file and row, in its order."""
        places = [(row[PLACE_FILE], row["file_row_number"]) for row in self._found(query)]
        of_file: dict[str, list[int]] = {}
        for name, row in places:
            of_file.setdefault(name, []).append(row)
        found: dict[tuple[str, int], Row] = {}
        for name, rows in of_file.items():
            for row in self._of_file(Path(name), rows):
                found[name, row["file_row_number"]] = row
        return [found[place] for place in places]

    def sample(self, key: str) -> list[Row]:
        """Returns all rows with a key: a repeated row has that of the one that was kept."""
        return self._ask("SELECT * FROM samples WHERE key = ? LIMIT 20", [key])

    def row(self, folder: str, shard: int, number: int) -> Row | None:
        """Returns a row by its place; None if there is none.

        Args:
            folder: train, or a stage that rejects.
        """
        path = self._places.get((folder, shard))
        found = self._of_file(path, [number]) if path is not None else []
        return found[0] if found else None

    def _of_file(self, path: Path, numbers: list[int]) -> list[Row]:
        """Returns all that is known of some rows of a file."""
        return self._ask(
            f"SELECT * FROM no_packed UNION ALL BY NAME SELECT * FROM {_read([path])} "
            f"WHERE file_row_number IN ({', '.join(map(str, numbers))})"
        )

    def reasons(self) -> list[Row]:
        """Returns how many rows each stage rejected, and why."""
        return self._ask(
            "SELECT stage, reason, count(*) AS n FROM left_out GROUP BY ALL ORDER BY n DESC, reason"
        )

    def levels(self) -> list[Row]:
        """Returns the levels with their number of rows and range of scores."""
        return self._ask(
            "SELECT alignment_level AS level, count(*) AS n, min(clip_score) AS low, "
            "max(clip_score) AS high FROM packed WHERE alignment_level IS NOT NULL "
            "GROUP BY ALL ORDER BY level"
        )

    def edge(self, level: int, size: int = EDGE_ROWS) -> tuple[list[Row], list[Row]]:
        """Returns the best of a level and the worst of the next, each nearest the edge first.

        By what decides the levels, and as they do: of pairs that tie, the hash of the key.
        """
        value = _value_of(self.ranked_by)
        return tuple(  # type: ignore[return-value]
            self._whole(
                f"SELECT {OF_FILE} FROM (SELECT {OF_FILE}, alignment_level, key, {value} AS value "
                f"FROM packed WHERE alignment_level IS NOT NULL) WHERE alignment_level = {number} "
                f"ORDER BY value {way} NULLS LAST, key {way} LIMIT {size}"
            )
            for number, way in ((level, "DESC"), (level + 1, "ASC"))
        )

    def duplicates(self, number: int, reason: str = "near_duplicate") -> tuple[int, list[Group]]:
        """Returns how many groups have duplicates of a kind, and a page of them, largest first."""
        grouped = "FROM left_out WHERE reason = ? AND kept_key IS NOT NULL"
        total = self._ask(f"SELECT count(DISTINCT kept_key) AS n {grouped}", [reason])[0]["n"]
        found = self._ask(
            f"SELECT kept_key, count(*) AS n {grouped} GROUP BY kept_key "
            f"ORDER BY n DESC, kept_key LIMIT {GROUPS} OFFSET {number * GROUPS}",
            [reason],
        )
        keys = ", ".join(quoted(row["kept_key"]) for row in found) or "''"
        kept: dict[str, Row] = {}
        for row in self._whole(f"SELECT {OF_FILE} FROM samples WHERE key IN ({keys})"):
            if row["reason"] is None or row["key"] not in kept:
                kept[row["key"]] = row
        dropped: dict[str, list[Row]] = {}
        for row in self._whole(
            f"SELECT {OF_FILE} FROM left_out WHERE kept_key IN ({keys}) AND reason = "
            f"{quoted(reason)} QUALIFY row_number() OVER (PARTITION BY kept_key ORDER BY key) <= 8"
        ):
            dropped.setdefault(row["kept_key"], []).append(row)
        groups = [
            Group(kept.get(row["kept_key"]), dropped.get(row["kept_key"], []), row["n"])
            for row in found
        ]
        return total, groups

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()


def _read(files: list[Path]) -> str:
    """Returns what reads files in SQL, with the place of each row."""
    names = ", ".join(quoted(str(path)) for path in files)
    return (
        f"read_parquet([{names}], union_by_name = true, filename = {quoted(PLACE_FILE)}, "
        "file_row_number = true)"
    )


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _column(name: str) -> str:
    """Returns a column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _value_of(by: str) -> str:
    """Returns what levels are cut by, as SQL over all rows that have a level."""
    mean = parse_rank_mean(by)
    if mean is None:
        return _column(by)
    ranks = [f"row_number() OVER (ORDER BY {_column(name)}, key)" for name in mean.names]
    return " + ".join(
        f"{weight!r} * {rank}" for weight, rank in zip(mean.weights, ranks, strict=True)
    )


def _orders_of(signals: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the orders by signals: name and SQL."""
    for name in signals:
        for word, way in (("highest", "DESC"), ("lowest", "ASC")):
            yield f"{name}, {word} first", f"{_column(name)} {way} NULLS LAST, key"


def shard_of(row: Row) -> tuple[Stage, int]:
    """Returns the stage whose file a row is of, and the number of its shard."""
    path = Path(row[PLACE_FILE])
    stage = Stage.PACK if path.parent.name == "train" else Stage(path.parent.name)
    return stage, int(path.stem)
