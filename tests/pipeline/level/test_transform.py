from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.progress import ProgressReader
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curated_tables import Row, read_rows, write_shards
from tests.levelled import (
    expected_levels,
    level,
    levels_by_key,
    some_rows,
)


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
def test_levels_are_those_of_all_shards_sorted_together(layout):
    rows = some_rows(100)
    shards = write_shards(layout, [rows[:50], rows[50:51], [], rows[51:]])
    level(layout, shards)
    assert levels_by_key(layout, shards) == expected_levels(rows, 8)


@pytest.mark.slow
def test_what_precedes_the_levels_of_a_shard_says_how_far_it_is(layout, tmp_path):
    shards = write_shards(layout, [some_rows(10, 1), some_rows(10, 2)])
    level(layout, shards)
    steps = [(s.step, s.done, s.total) for s in ProgressReader(layout).read_steps()]
    assert steps == [("count", 2, 2), ("tally", 2, 2)]
    new = DatasetLayout(str(tmp_path / "new"))
    level(new, write_shards(new, [some_rows(10, 3)]), edges_from=layout.root)
    steps = [(s.step, s.done, s.total) for s in ProgressReader(new).read_steps()]
    assert steps == [("tally", 1, 1)]


@pytest.mark.slow
def test_the_division_into_shards_does_not_change_a_level(layout, tmp_path):
    rows = some_rows(60)
    one = write_shards(layout, [rows])
    level(layout, one, num_levels=5)
    other = DatasetLayout(str(tmp_path / "other"))
    three = write_shards(other, [rows[::3], rows[1::3], rows[2::3]])
    level(other, three, num_levels=5)
    assert levels_by_key(layout, one) == levels_by_key(other, three)


@pytest.mark.slow
def test_a_second_run_changes_no_file(layout):
    shards = write_shards(layout, [some_rows(20)])
    level(layout, shards)
    before = {path: path.stat().st_mtime_ns for path in Path(layout.root, "levelled").iterdir()}
    level(layout, shards)
    after = {path: path.stat().st_mtime_ns for path in Path(layout.root, "levelled").iterdir()}
    assert before == after


@pytest.mark.slow
def test_a_changed_shard_changes_the_levels_of_the_others(layout):
    rows = some_rows(40)
    shards = write_shards(layout, [rows[:20], rows[20:]])
    level(layout, shards)
    higher = [Row(row.name, row.score + 1) for row in rows[20:]]
    write_shards(layout, [rows[:20], higher])
    level(layout, shards)
    assert levels_by_key(layout, shards) == expected_levels(rows[:20] + higher, 8)


@pytest.mark.slow
def test_pairs_below_the_minimum_are_rejected_before_the_levels_are_cut(layout):
    rows = some_rows(50)
    shards = write_shards(layout, [rows[:25], rows[25:]])
    level(layout, shards, minimum_score=0.25)
    high = [row for row in rows if np.float32(row.score) >= np.float32(0.25)]
    assert levels_by_key(layout, shards) == expected_levels(high, 8)
    rejected = [row for s in shards for row in read_rows(layout.rejected(Stage.LEVEL, s))]
    assert {row["key"] for row in rejected} == {r.key for r in rows} - {r.key for r in high}
    assert {row["reason"] for row in rejected} == {"below_minimum_score"}
    assert all(row["clip_score"] < 0.25 and row["url"] for row in rejected)


@pytest.mark.slow
def test_the_top_fraction_is_levelled_and_the_rest_rejected(layout):
    rows = some_rows(50)
    shards = write_shards(layout, [rows[:10], rows[10:]])
    level(layout, shards, top_fraction=0.3)
    best = sorted(rows, key=lambda row: (np.float32(row.score), row.key))[-15:]
    assert levels_by_key(layout, shards) == expected_levels(best, 8)
    rejected = [row for s in shards for row in read_rows(layout.rejected(Stage.LEVEL, s))]
    assert [row["reason"] for row in rejected] == ["below_top_fraction"] * 35


@pytest.mark.slow
def test_each_source_can_have_its_own_edges(layout):
    low, high = some_rows(24, 1, 0.1, "low.csv"), some_rows(32, 2, 0.5, "high.csv")
    shards = write_shards(layout, [low[:10] + high[:5], low[10:] + high[5:]])
    level(layout, shards, per_source=True)
    assert levels_by_key(layout, shards) == {
        **expected_levels(low, 8),
        **expected_levels(high, 8),
    }
