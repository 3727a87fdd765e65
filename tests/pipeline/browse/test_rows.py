"""Rows of a dataset as DuckDB finds them."""

import shutil
from itertools import pairwise

import pyarrow.parquet as pq
import pytest

from pipeline.browse.rows import DatasetRows, shard_of
from schemas.errors import ConfigError, DatasetError
from schemas.records import TRAIN_SCHEMA
from schemas.stages import Stage


def test_every_row_is_shown_once_kept_or_not(rows):
    everything = rows.count("")
    seen = [row for page in range(5) for row in rows.page("", "score, best first", page, size=10)]
    assert len(seen) == everything
    assert len({(row["filename"], row["file_row_number"]) for row in seen}) == everything
    assert rows.count("reason is null") == 38
    assert sum(row["n"] for row in rows.reasons()) == everything - 38


def test_an_order_holds_through_the_pages(rows):
    scores = [
        row["clip_score"]
        for page in range(4)
        for row in rows.page("reason is null", "score, worst first", page, size=10)
    ]
    assert scores == sorted(scores)
    assert len(scores) == 38


def test_a_dataset_that_is_not_here_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nothing to look at"):
        DatasetRows(str(tmp_path))
    with pytest.raises(ConfigError, match="copy s3://bucket/data first"):
        DatasetRows("s3://bucket/data")


def test_tables_from_before_the_distances_were_kept_can_be_browsed(root, tmp_path):
    shutil.copytree(root, tmp_path / "old")
    path = tmp_path / "old/rejected/deduplicate/00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["kept_cosine", "kept_look"]), path)
    rows = DatasetRows(str(tmp_path / "old"))
    assert all(row["kept_look"] is None for row in rows.page("reason is not null", "", 0))
    assert set(TRAIN_SCHEMA.names) <= set(rows.page("", "", 0)[0])
    rows.close()


def test_a_row_is_found_by_its_place_and_rows_by_their_key(rows):
    (first,) = rows.page("", "score, best first", 0, size=1)
    assert shard_of(first)[0] is Stage.PACK
    assert rows.row("train", shard_of(first)[1], first["file_row_number"]) == first
    assert first in rows.sample(first["key"])
    assert rows.row("train", 0, 9999) is None
    assert rows.row("nowhere", 0, 0) is None
    assert rows.sample("0" * 31) == []


def test_levels_have_their_count_and_range(rows):
    levels = rows.levels()
    assert [level["level"] for level in levels] == [1, 2, 3, 4]
    assert sum(level["n"] for level in levels) == 38
    for lower, higher in pairwise(levels):
        assert lower["low"] <= lower["high"] <= higher["low"]


def test_duplicates_stand_in_groups_with_what_stayed(rows):
    total, groups = rows.duplicates(0)
    assert total == len(groups) >= 1
    assert [group.count for group in groups] == sorted((g.count for g in groups), reverse=True)
    for group in groups:
        assert {row["kept_key"] for row in group.dropped} == {group.kept["key"]}
    assert rows.duplicates(1) == (total, [])
    assert rows.duplicates(0, "exact_duplicate") == (0, [])
