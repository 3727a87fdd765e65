"""Which shards earlier attempts finished, in one file: progress files of many are joined into it.

A job that goes on with a hundred thousand shards would otherwise read several small files for each,
which takes an object store minutes, and each of its looks at them as long. Nobody writes to the
folder while they are joined: it is done when a job or an attempt begins.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.storage import commit_file, exists, open_read

FIELDS = pa.schema(
    [
        ("stage", pa.dictionary(pa.int32(), pa.string())),
        ("shard", pa.int64()),
        ("total", pa.int64()),
        ("kept", pa.int64()),
        ("rejected", pa.int64()),
        ("host", pa.dictionary(pa.int32(), pa.string())),
        ("process", pa.int64()),
        ("time_unix_seconds", pa.float64()),
        ("seconds", pa.string()),
    ]
)
"""As progress files have them; `seconds` is JSON."""


def finished_path(layout: DatasetLayout) -> str:
    """Returns where the finished shards of earlier attempts are listed."""
    return f"{layout.run}/finished.parquet"


def read_finished(layout: DatasetLayout) -> Iterator[dict[str, Any]]:
    """Yields what a progress file says of each finished shard that is listed.

    Raises:
        DatasetError: if the list is damaged.
    """
    table = _read(layout, FIELDS.names)
    nothing: dict[str, float] = {}
    for batch in table.to_batches(max_chunksize=10_000):
        columns = [_values(column) for column in batch.columns]
        for row in zip(*columns, strict=True):
            values = dict(zip(FIELDS.names, row, strict=True))
            seconds = values["seconds"]
            yield {**values, "seconds": json.loads(seconds) if seconds != "{}" else nothing}


def _values(column: pa.Array) -> list[Any]:
    """Returns the values of a column, equal texts as one object."""
    if not pa.types.is_dictionary(column.type):
        values: list[Any] = column.to_pylist()
        return values
    names = column.dictionary.to_pylist()
    return [names[index] for index in column.indices.to_pylist()]


def finished_shards(layout: DatasetLayout) -> Iterator[tuple[str, int]]:
    """Yields stage and shard of each finished shard that is listed."""
    table = _read(layout, ["stage", "shard"])
    for batch in table.to_batches():
        yield from zip(_values(batch["stage"]), batch["shard"].to_pylist(), strict=True)


def _read(layout: DatasetLayout, columns: list[str]) -> pa.Table:
    path = finished_path(layout)
    if not exists(path):
        return FIELDS.empty_table().select(columns)
    try:
        with open_read(path) as file:
            table = pq.read_table(file, columns=columns)
            return table.cast(pa.schema([FIELDS.field(name) for name in columns]))
    except (pa.ArrowException, KeyError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}): remove it, and what is done is found by its files"
        ) from error


def write_finished(layout: DatasetLayout, rows: Iterable[dict[str, Any]]) -> None:
    """Lists these finished shards, in place of those that are listed."""
    columns: dict[str, list[Any]] = {name: [] for name in FIELDS.names}
    for row in rows:
        for name, values in columns.items():
            values.append(json.dumps(row[name]) if name == "seconds" else row[name])
    with commit_file(finished_path(layout)) as file:
        pq.write_table(pa.table(columns, schema=FIELDS), file)
