"""A copy of a dataset's rows from which one after another can be read at random, mapped.

The tables beside the shards are made to be read whole: a row of Parquet costs its row group, and
the rows of a step lie in as many of them as it has samples. Here rows stand in small compressed
Arrow batches, in the dataset's order, without the columns that training does not read; a row costs
its batch, which is a read or two from the disk. What is asked of all rows (the level, the share by
which a sample is held out) stands beside them as arrays.
"""

import io
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import read_table
from schemas.errors import DatasetError
from schemas.manifest import Manifest, ShardEntry
from schemas.progress import is_first_process, shown
from schemas.records import TRAIN_SCHEMA, hash_share
from schemas.shards import DatasetLayout
from schemas.storage import read_bytes
from training.data.mapped import HELD_ROWS, map_array, write_array

ROWS_VERSION = 1
"""Raised when rows are kept differently from before."""
COLUMNS = ["key", "sample_id", "caption", "conversations", "alignment_level"]
COLUMNS += ["image_offset", "image_bytes", "more_image_offsets", "more_image_bytes"]
COLUMNS += ["pixel_hash"]
HASHES = "more_hashes"
"""Of the pictures after the first, all that is kept of `more_images`."""
BATCH_BYTES = 2**16
"""About so much of the rows is in a batch."""
RECENT_BATCHES = 64
"""That a process keeps uncompressed."""
WRITTEN_AT_ONCE = 2**20
READ_AHEAD = 4
"""Shards that are read while another is copied."""
FILE, STARTS, LEVELS, SHARES, FACTS = "rows.arrow", "starts", "levels", "shares", "facts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFacts:
    """What is known of all rows of a dataset together."""

    is_by_key: bool
    """Whether they stand in the order of their keys."""
    longest_key: int
    """In bytes."""


class MappedRows:
    """The rows of a dataset folder, in a folder that `write_rows` wrote."""

    def __init__(self, folder: Path) -> None:
        self._mapped = pa.memory_map(str(folder / FILE)).read_buffer()
        self._reader = _reader(self._mapped)
        self._starts = map_array(folder / STARTS, np.int64)
        self._recent: dict[int, pa.RecordBatch] = {}
        self.levels = map_array(folder / LEVELS, np.int8)
        """(rows,) from 1 on; 0 of those that were never levelled."""
        self.shares = map_array(folder / SHARES, np.float64)
        """(rows,) in [0, 1): what is below a ratio is held out."""
        self.facts = RowsFacts(**json.loads((folder / FACTS).read_text()))

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.levels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a row; its column `shard` is the number of the shard that holds its images."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        row: dict[str, Any]
        [row] = self._batch(number).slice(index - int(self._starts[number]), 1).to_pylist()
        return row

    def all_keys(self) -> Iterator[np.ndarray]:
        """Yields the keys of all rows, as bytes, batch by batch."""
        reader = _reader(self._mapped, [0])
        for number in range(reader.num_record_batches):
            keys = reader.get_batch(number).column(0).cast(pa.binary()).to_pylist()
            yield np.array(keys, dtype=f"S{max(1, self.facts.longest_key)}")

    def _batch(self, number: int) -> pa.RecordBatch:
        batch = self._recent.pop(number, None)
        if batch is None:
            batch = self._reader.get_batch(number)
            if len(self._recent) == RECENT_BATCHES:
                del self._recent[next(iter(self._recent))]
        self._recent[number] = batch
        return batch


def _reader(mapped: pa.Buffer, columns: list[int] | None = None) -> pa.ipc.RecordBatchFileReader:
    # A worker process has none of the threads that Arrow began before it was forked.
    options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
    return pa.ipc.open_file(mapped, options=options)


def bytes_of_copy(manifest: Manifest) -> int:
    """Returns about what the copy of a dataset's rows takes."""
    samples = sum(entry.samples for entry in manifest.shards)
    return sum(entry.parquet_bytes for entry in manifest.shards) + 9 * samples


def write_rows(layout: DatasetLayout, manifest: Manifest, folder: Path) -> None:
    """Writes the copy of a dataset's rows into a folder.

    Raises:
        DatasetError: if a table is not what the manifest says, or is of another version.
    """
    starts, previous, longest = [0], None, 0
    is_by_key = True
    is_long = sum(entry.samples for entry in manifest.shards) >= HELD_ROWS
    is_active = is_long and is_first_process()
    tables = _read_ahead(layout, manifest.shards)
    total = len(manifest.shards)
    with (
        (folder / LEVELS).open("wb") as levels,
        (folder / SHARES).open("wb") as shares,
        _writer(folder / FILE) as writer,
    ):
        shards = shown("copying rows", tables, total, unit="shard", is_active=is_active)
        for number, table in enumerate(shards):
            levels.write(_levels(table).data)
            shares.write(_shares(table).data)
            keys = table.column("key").combine_chunks()
            if len(table):
                is_by_key = is_by_key and _ascends(keys, previous)
                previous = keys[-1].as_py()
                longest = max(longest, pc.max(pc.binary_length(keys)).as_py())
            for batch in _batches(table, number):
                writer.write_batch(batch)
                starts.append(starts[-1] + len(batch))
    write_array(folder / STARTS, [np.array(starts[:-1], np.int64)])
    facts = {"is_by_key": is_by_key, "longest_key": longest}
    (folder / FACTS).write_text(json.dumps(facts))


@contextmanager
def _writer(path: Path) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    fields = [TRAIN_SCHEMA.field(name).remove_metadata() for name in COLUMNS]
    fields += [pa.field(HASHES, pa.list_(pa.string())), pa.field("shard", pa.int32())]
    options = pa.ipc.IpcWriteOptions(
        compression=pa.Codec("zstd", compression_level=1),
        use_threads=False,  # for batches as small as these it costs more than it saves
    )
    with (
        pa.OSFile(str(path), "wb") as raw,
        pa.BufferedOutputStream(raw, WRITTEN_AT_ONCE) as file,
        pa.ipc.new_file(file, pa.schema(fields), options=options) as writer,
    ):
        yield writer


def _read_ahead(layout: DatasetLayout, shards: Sequence[ShardEntry]) -> Iterator[pa.Table]:
    """Yields the rows of shards, some of which are read meanwhile."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        coming: deque[Future[pa.Table]] = deque()
        for shard in shards:
            coming.append(pool.submit(_read_rows, layout, int(shard.name), shard.samples))
            if len(coming) > READ_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _read_rows(layout: DatasetLayout, shard: int, samples: int) -> pa.Table:
    path = layout.train(shard, "parquet")
    columns = [*COLUMNS, "more_images", "url"]
    table = read_table(io.BytesIO(read_bytes(path)), TRAIN_SCHEMA, columns=columns)
    if len(table) != samples:
        raise DatasetError(
            f"{path} has {len(table)} rows, the manifest says {samples}: curate it again"
        )
    return table.replace_schema_metadata(None)


def _levels(table: pa.Table) -> np.ndarray:
    return np.ascontiguousarray(pc.fill_null(table.column("alignment_level"), 0), np.int8)


def _shares(table: pa.Table) -> np.ndarray:
    urls, keys = (table.column(name).to_pylist() for name in ("url", "key"))
    return np.array([hash_share(url or key) for url, key in zip(urls, keys, strict=True)])


def _ascends(keys: pa.Array, previous: str | None) -> bool:
    is_behind = previous is None or previous <= keys[0].as_py()
    return is_behind and bool(pc.all(pc.less_equal(keys[:-1], keys[1:])).as_py() is not False)


def _batches(table: pa.Table, shard: int) -> Iterator[pa.RecordBatch]:
    more = table.column("more_images").combine_chunks()
    hashes = pa.ListArray.from_arrays(
        more.offsets, more.values.field("pixel_hash"), mask=more.is_null()
    )
    table = table.select(COLUMNS).append_column(HASHES, hashes)
    table = table.append_column("shard", pa.array(np.full(len(table), shard, np.int32)))
    rows = max(1, BATCH_BYTES * len(table) // max(1, table.nbytes))
    yield from table.combine_chunks().to_batches(max_chunksize=rows)
