"""Sorts rows that do not fit in memory: runs, partitions, and shards cut from them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.arrow_files import read_batches, write_batches
from pipeline.dataset.guard import refuse_other_rows
from pipeline.read.kept import as_texts, typed_columns, without_unknown
from pipeline.read.rows import ROW_SCHEMA
from schemas.columns import with_kept, write_table
from schemas.errors import RejectReason
from schemas.records import PAIR_SCHEMA, REJECTION_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, exists, remove

RUN_BYTES = 64 * 1024 * 1024
"""Rows that a worker gathers in memory before it writes them as a run."""

BATCH_ROWS = 10_000
"""Rows of a batch of a sorted partition: the smallest piece that is read of it."""

PARTITION_DIGITS = 4
"""Leading hex digits of a key that decide its partition."""


class RunWriter:
    """Writes rows as runs: files that hold one batch of rows for each partition."""

    def __init__(self, stem: str, num_partitions: int) -> None:
        self._stem, self._num_partitions = stem, num_partitions
        self._tables: list[pa.Table] = []
        self._bytes = 0
        self._paths: list[str] = []

    def add(self, rows: pa.Table) -> None:
        """Takes rows of `ROW_SCHEMA`."""
        self._tables.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= RUN_BYTES:
            self._flush()

    def finish(self) -> list[str]:
        """Returns the paths of all runs, the last rows written too."""
        self._flush()
        return self._paths

    def _flush(self) -> None:
        if not self._tables:
            return
        rows = pa.concat_tables(self._tables).combine_chunks()
        self._tables, self._bytes = [], 0
        partitions = partition_of(rows["key"], self._num_partitions)
        order = np.argsort(partitions, kind="stable")
        rows = rows.take(pa.array(order))
        bounds = np.searchsorted(partitions[order], np.arange(self._num_partitions + 1))
        path = f"{self._stem}-{len(self._paths):04d}.arrow"
        batches = (_one_batch(rows.slice(first, last - first)) for first, last in pairwise(bounds))
        write_batches(path, batches, ROW_SCHEMA, "lz4")
        self._paths.append(path)


def partition_of(keys: pa.ChunkedArray, num_partitions: int) -> np.ndarray:
    """Returns each key's partition: ranges of keys, in their order and equally wide."""
    prefixes = pc.utf8_slice_codeunits(keys, 0, PARTITION_DIGITS)
    numbers = np.fromiter(
        (int(prefix, 16) for prefix in prefixes.to_pylist()), np.int64, len(prefixes)
    )
    return numbers * num_partitions >> 4 * PARTITION_DIGITS


def sort_partition(runs: Sequence[str], partition: int, folder: str) -> tuple[int, int]:
    """Writes a partition's pairs and rejections, sorted; returns how many there are of each.

    Of rows with the same key the first by source and expected hash stays; it is the same one
    whatever the order in which they were read.
    """
    found = [read_batches(run, [partition]) for run in runs]
    rows = pa.concat_tables([ROW_SCHEMA.empty_table(), *found])
    names = ("key", "reason", "source", "expected_hash", "url", "caption", "conversations")
    more = ("detail", "tar_member", "sample_id", "given_level", "kept")
    filled = {name: pc.fill_null(rows[name], "") for name in (*names, *more)}
    order = pc.sort_indices(pa.table(filled), sort_keys=[(name, "ascending") for name in filled])
    rows = rows.take(order).combine_chunks()
    is_rejected = ~np.asarray(rows["reason"].is_null())
    rejected = rows.filter(pa.array(is_rejected))
    rows = rows.filter(pa.array(~is_rejected))
    keys = key_array(rows)
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    kept = rows.filter(pa.array(is_first))
    again = rows.filter(pa.array(~is_first))
    rejections = _rejections(rejected, None)
    if again.num_rows:
        rejections = pa.concat_tables([rejections, _rejections(again, _kept_sources(kept, again))])
        rejections = rejections.sort_by([(name, "ascending") for name in _REJECTION_ORDER])
    _write_table(f"{folder}/{partition:05d}_pairs.arrow", _pairs(kept))
    _write_table(f"{folder}/{partition:05d}_rejected.arrow", rejections)
    return kept.num_rows, rejections.num_rows


def _pairs(kept: pa.Table) -> pa.Table:
    """Returns the columns of a pair from rows whose columns are all texts, and what is kept."""
    pairs = kept.select([*PAIR_SCHEMA.names, "kept"])
    place = pairs.schema.get_field_index("given_level")
    level = PAIR_SCHEMA.field("given_level")
    return pairs.set_column(place, level.name, pc.cast(pairs[level.name], level.type))


_NO_ROWS = ROW_SCHEMA.empty_table()


def _with_kept(pairs: pa.Table, kept: Sequence[pa.Field]) -> pa.Table:
    """Returns pairs with the input's own columns as such, in place of their texts."""
    columns = [*pairs.drop_columns("kept").columns, *typed_columns(pairs["kept"], kept)]
    return pa.table(columns, schema=with_kept(PAIR_SCHEMA, kept))


_REJECTION_ORDER = ("key", "reason", "source", "detail")


def _kept_sources(kept: pa.Table, again: pa.Table) -> pa.Array:
    """Returns the source of the row that stayed, for each duplicate of it."""
    places = np.searchsorted(key_array(kept), key_array(again))
    return kept["source"].take(pa.array(places)).combine_chunks()


def _rejections(rows: pa.Table, kept_sources: pa.Array | None) -> pa.Table:
    """Returns the rejection table of rows with a reason, or of duplicates of kept rows."""
    count = rows.num_rows
    is_duplicate = kept_sources is not None
    reason, detail = rows["reason"], rows["detail"]
    if is_duplicate:
        reason = pa.repeat(pa.scalar(RejectReason.DUPLICATE_ROW.value), count)
        detail = pc.binary_join_element_wise("the same pair stands in", kept_sources, " ")
    columns = {
        "key": rows["key"],
        "url": rows["url"],
        "caption": rows["caption"],
        "source": rows["source"],
        "stage": pa.repeat(pa.scalar(Stage.READ.value), count),
        "reason": reason,
        "is_retryable": pa.repeat(pa.scalar(False), count),
        "detail": detail,
        "http_status": pa.nulls(count, pa.int16()),
        "kept_key": rows["key"] if is_duplicate else pa.nulls(count, pa.string()),
        "clip_score": pa.nulls(count, pa.float32()),
    }
    return pa.table(columns, schema=REJECTION_SCHEMA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRange:
    """The rows that make a shard: a range of all pairs in the order of their keys."""

    shard: int
    pieces: tuple[tuple[int, int, int], ...]
    """(partition, first row, row after the last) for each partition that it draws from."""
    next_row: tuple[int, int] | None
    """(partition, row) that the next shard begins with; None for the last shard."""
    rejected_partitions: tuple[int, ...]
    """Partitions that may hold rejected rows with keys among those of the shard."""


def plan_shards(
    kept: Sequence[int], rejected: Sequence[int], pairs_per_shard: int
) -> list[ShardRange]:
    """Returns the shards to write; one with rejections alone if no pair is kept.

    Args:
        kept: pairs in each partition.
        rejected: rejected rows in each partition.
    """
    ends = np.cumsum(kept)
    total = int(ends[-1])
    starts = list(range(0, total, pairs_per_shard)) or [0]
    places = [_place(ends, row) for row in starts]
    plans = []
    for shard, start in enumerate(starts):
        stop = min(start + pairs_per_shard, total)
        is_last = shard == len(starts) - 1
        first = 0 if shard == 0 else places[shard][0]
        last = len(kept) - 1 if is_last else places[shard + 1][0]
        pieces = [
            (partition, max(start - begin, 0), min(stop - begin, kept[partition]))
            for partition in range(first, last + 1)
            if (begin := int(ends[partition]) - kept[partition]) < stop
            and int(ends[partition]) > start
        ]
        plans.append(
            ShardRange(
                shard=shard,
                pieces=tuple(pieces),
                next_row=None if is_last else places[shard + 1],
                rejected_partitions=tuple(p for p in range(first, last + 1) if rejected[p]),
            )
        )
    return plans


def _place(ends: np.ndarray, row: int) -> tuple[int, int]:
    partition = int(np.searchsorted(ends, row, side="right"))
    partition = min(partition, len(ends) - 1)
    return partition, row - (int(ends[partition - 1]) if partition else 0)


def write_pairs_shard(
    layout: DatasetLayout, shard: ShardRange, folder: str, kept_types: pa.Schema
) -> tuple[int, int]:
    """Writes a shard of pairs, and the rejected rows whose keys fall among its keys.

    Returns how many there are of each. The fingerprint of the shard is that of its content.

    Args:
        kept_types: of the input's own columns.
    """
    tables = [
        _read_rows(f"{folder}/{partition:05d}_pairs.arrow", start, stop)
        for partition, start, stop in shard.pieces
    ]
    pairs = pa.concat_tables(
        [table for table in tables if table.num_rows] or tables[:1] or [_pairs(_NO_ROWS)]
    )
    pairs = _with_kept(pairs.combine_chunks(), without_unknown(kept_types))
    low = "" if shard.shard == 0 else pairs["key"][0].as_py()
    high = None
    if shard.next_row is not None:
        partition, row = shard.next_row
        following = _read_rows(f"{folder}/{partition:05d}_pairs.arrow", row, row + 1)
        high = following["key"][0].as_py()
    rejections = pa.concat_tables(
        [REJECTION_SCHEMA.empty_table()]
        + [
            _within(read_batches(f"{folder}/{partition:05d}_rejected.arrow"), low, high)
            for partition in shard.rejected_partitions
        ]
    ).combine_chunks()
    _commit_shard(layout, shard.shard, pairs, rejections)
    return pairs.num_rows, rejections.num_rows


def _commit_shard(layout: DatasetLayout, shard: int, pairs: pa.Table, rejections: pa.Table) -> None:
    fingerprint = content_fingerprint(pairs)
    refuse_other_rows(layout, shard, fingerprint)
    if exists(layout.pairs(shard)):
        remove(layout.pairs(shard))
    with commit_file(layout.rejected(Stage.READ, shard)) as file:
        write_table(rejections, file, {"fingerprint": fingerprint})
    if pairs.num_rows:
        with commit_file(layout.pairs(shard)) as file:
            write_table(pairs, file, {"fingerprint": fingerprint})


def content_fingerprint(table: pa.Table) -> str:
    """Returns 32 hex digits that depend on the values of a table, as texts, and on nothing else."""
    digest = hashlib.blake2b(digest_size=16)
    for name in table.schema.names:
        column = as_texts(table[name])
        lengths = pc.fill_null(pc.binary_length(column), -1)
        digest.update(name.encode() + b"\0" + np.asarray(lengths, np.int32).tobytes())
        for value in column.drop_null().chunks:
            digest.update(_text_bytes(value))
    return digest.hexdigest()


def _text_bytes(array: pa.Array) -> memoryview:
    """Returns the texts of an array without nulls, one after the other."""
    _, offsets, data = array.buffers()
    if not len(array) or data is None:
        return memoryview(b"")
    places = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[places[0] : places[-1]]


def key_array(table: pa.Table) -> np.ndarray:
    """Returns the keys of a table as fixed-length bytes, which compare as the keys do."""
    column = table["key"].combine_chunks()
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [np.frombuffer(_text_bytes(chunk), "S32") for chunk in chunks]
    return np.concatenate(parts) if parts else np.empty(0, "S32")


def _within(rejections: pa.Table, low: str, high: str | None) -> pa.Table:
    keys = key_array(rejections)
    first = int(np.searchsorted(keys, low.encode()))
    last = len(keys) if high is None else int(np.searchsorted(keys, high.encode()))
    return rejections.slice(first, last - first)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _write_table(path: str, table: pa.Table) -> None:
    batches = table.combine_chunks().to_batches(max_chunksize=BATCH_ROWS)
    write_batches(path, batches, table.schema, "lz4")


def _read_rows(path: str, start: int, stop: int) -> pa.Table:
    """Returns the rows [start, stop) of a sorted partition, reading only their batches."""
    first = start // BATCH_ROWS
    numbers = range(first, (stop - 1) // BATCH_ROWS + 1 if stop > start else first)
    return read_batches(path, numbers).slice(start - first * BATCH_ROWS, stop - start)
