"""Partitions, the shards that are cut from them, and what tells tables apart."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.arrow_files import read_batches
from pipeline.read import shuffle
from pipeline.read.rows import ROW_SCHEMA
from pipeline.read.shuffle import (
    RunWriter,
    content_fingerprint,
    key_array,
    partition_of,
    plan_shards,
    sort_partition,
)

KEYS = ("0" * 32, "3fff" + "f" * 28, "4000" + "0" * 28, "8" * 32, "ffff" + "0" * 28)


def rows_of(*keys: str, **columns: list[str | None]) -> pa.Table:
    values = {"key": list(keys), "source": ["in"] * len(keys), **columns}
    nulls = pa.nulls(len(keys), pa.string())
    return pa.table({name: values.get(name, nulls) for name in ROW_SCHEMA.names}, ROW_SCHEMA)


def test_partitions_are_ranges_of_keys_equally_wide() -> None:
    assert partition_of(pa.chunked_array([KEYS]), 4).tolist() == [0, 0, 1, 2, 3]
    assert partition_of(pa.chunked_array([KEYS]), 1).tolist() == [0] * 5


def test_runs_give_back_the_rows_of_each_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "RUN_BYTES", 1)  # a run for each table
    writer = RunWriter(str(tmp_path / "run"), 4)
    writer.add(rows_of(*KEYS[::-1]))
    writer.add(rows_of(KEYS[2]))
    runs = writer.finish()
    assert len(runs) == 2
    found = [
        [key for run in runs for key in read_batches(run, [number])["key"].to_pylist()]
        for number in range(4)
    ]
    assert found == [[KEYS[1], KEYS[0]], [KEYS[2], KEYS[2]], [KEYS[3]], [KEYS[4]]]


def test_a_partition_is_sorted_and_a_repeated_key_stays_once_by_its_source(tmp_path: Path) -> None:
    writer = RunWriter(str(tmp_path / "run"), 1)
    sources = ["b", "a", "c"]
    writer.add(rows_of(KEYS[3], KEYS[3], KEYS[0], source=sources, url=["u"] * 3))
    writer.add(rows_of(KEYS[1], reason=["bad_url"], detail=["it is none"]))
    assert sort_partition(writer.finish(), 0, str(tmp_path)) == (2, 2)
    pairs = read_batches(str(tmp_path / "00000_pairs.arrow"))
    assert list(zip(pairs["key"].to_pylist(), pairs["source"].to_pylist(), strict=True)) == [
        (KEYS[0], "c"),
        (KEYS[3], "a"),
    ]
    rejected = read_batches(str(tmp_path / "00000_rejected.arrow")).to_pylist()
    assert [(row["key"], row["reason"], row["kept_key"]) for row in rejected] == [
        (KEYS[1], "bad_url", None),
        (KEYS[3], "duplicate_row", KEYS[3]),
    ]
    assert rejected[1]["detail"] == "the same pair stands in a"


def test_shards_are_cut_across_partitions_and_rejections_go_with_their_keys() -> None:
    shards = plan_shards([3, 0, 5], [0, 2, 1], 4)
    pieces = [[piece for piece in shard.pieces if piece[1] < piece[2]] for shard in shards]
    assert pieces == [[(0, 0, 3), (2, 0, 1)], [(2, 1, 5)]]
    assert [shard.next_row for shard in shards] == [(2, 1), None]
    assert [shard.rejected_partitions for shard in shards] == [(1, 2), (2,)]


def test_every_pair_is_in_one_shard_and_each_but_the_last_is_full() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        kept = random.integers(0, 7, 6).tolist()
        shards = plan_shards(kept, [1] * 6, 5)
        places = [
            (partition, row)
            for shard in shards
            for partition, start, stop in shard.pieces
            for row in range(start, stop)
        ]
        assert places == [(p, row) for p, count in enumerate(kept) for row in range(count)]
        sizes = [sum(stop - start for _, start, stop in shard.pieces) for shard in shards]
        assert all(size == 5 for size in sizes[:-1])
        assert {p for shard in shards for p in shard.rejected_partitions} == set(range(6))


def test_rejections_alone_make_one_shard() -> None:
    (shard,) = plan_shards([0, 0], [0, 3], 10)
    assert (shard.pieces, shard.next_row, shard.rejected_partitions) == ((), None, (1,))


def test_a_fingerprint_is_of_values_and_not_of_how_they_lie_in_memory() -> None:
    table = pa.table({"a": ["x", "yz", None], "b": [1, 2, 3]})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert content_fingerprint(pieces) == content_fingerprint(table)
    assert len(content_fingerprint(table)) == 32
    for other in (
        {"a": ["xy", "z", None], "b": [1, 2, 3]},
        {"a": ["x", "yz", ""], "b": [1, 2, 3]},
        {"a": ["x", "yz", None], "c": [1, 2, 3]},
        {"a": ["x", "yz", None], "b": [1, 2, 4]},
    ):
        assert content_fingerprint(pa.table(other)) != content_fingerprint(table)


def test_keys_compare_as_fixed_bytes_whatever_was_cut_off_before_them() -> None:
    table = rows_of(*KEYS)
    assert key_array(table.slice(2)).tolist() == [key.encode() for key in KEYS[2:]]
    assert key_array(table.slice(5)).tolist() == []
