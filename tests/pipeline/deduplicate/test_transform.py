from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curated_tables import Row, read_rows, write_shards
from tests.duplicates import deduplicate, kept, vector


def rejected(layout, shards):
    rows = [row for s in shards for row in read_rows(layout.rejected(Stage.DEDUPLICATE, s))]
    return {row["key"]: (row["reason"], row["kept_key"]) for row in rows}


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
def test_the_best_scored_of_near_and_exact_duplicates_stays_across_shards(layout):
    best = Row("best", 0.4, vector(1), pixels="same")
    copy = Row("copy", 0.3, vector(1), pixels="same")
    near = Row("near", 0.2, vector(1, 0.05))
    alone = Row("alone", 0.1, vector(2))
    shards = write_shards(layout, [[copy, alone], [near], [], [best]])
    deduplicate(layout, shards)
    assert kept(layout, shards) == {best.key: 2, alone.key: 0}
    assert rejected(layout, shards) == {
        copy.key: ("exact_duplicate", best.key),
        near.key: ("near_duplicate", best.key),
    }


@pytest.mark.slow
def test_of_equal_scores_the_smallest_key_stays(layout):
    rows = [Row(f"copy{place}", 0.25, vector(3), pixels="x") for place in range(5)]
    shards = write_shards(layout, [rows[:2], rows[2:]])
    deduplicate(layout, shards)
    assert kept(layout, shards) == {min(row.key for row in rows): 4}


@pytest.mark.slow
def test_exact_duplicates_are_found_without_embeddings(layout):
    rows = [Row("a", 0.1, pixels="x"), Row("b", 0.2, pixels="x"), Row("c", 0.3)]
    shards = write_shards(layout, [rows])
    deduplicate(layout, shards, threshold=2.0)
    assert set(kept(layout, shards)) == {rows[1].key, rows[2].key}


def test_near_duplicates_without_embeddings_are_refused(layout):
    shards = write_shards(layout, [[Row("a", 0.1), Row("b", 0.2)]])
    with pytest.raises(Exception, match=r"score\.keep_embeddings"):
        deduplicate(layout, shards)


@pytest.mark.slow
def test_captions_that_differ_can_keep_both(layout):
    rows = [
        Row("a", 0.1, vector(1), pixels="x", caption="A  red Car"),
        Row("b", 0.2, vector(1), pixels="x", caption="a red car"),
        Row("c", 0.3, vector(1), pixels="x", caption="a car"),
    ]
    shards = write_shards(layout, [rows[:1], rows[1:]])
    deduplicate(layout, shards, must_captions_agree=True)
    assert kept(layout, shards) == {rows[1].key: 1, rows[2].key: 0}


@pytest.mark.slow
def test_many_cells_and_groups_give_the_result_of_one(layout, tmp_path):
    rows = [Row(f"{p}", 0.2, vector(p % 400, 0.02 * (p // 400))) for p in range(900)]
    one = write_shards(layout, [rows])
    deduplicate(layout, one, cells=1)
    other = DatasetLayout(str(tmp_path / "other"))
    three = write_shards(other, [rows[::3], rows[1::3], rows[2::3]])
    deduplicate(other, three, cells=16, memory_bytes=1 << 20)
    assert kept(layout, one) == kept(other, three)
    assert len(kept(layout, one)) == 400


@pytest.mark.slow
def test_a_second_run_changes_nothing_and_no_search_file_remains(layout):
    shards = write_shards(layout, [[Row("a", 0.1, vector(1)), Row("b", 0.2, vector(1))]])
    deduplicate(layout, shards)
    before = Path(layout.unique(0)).stat().st_mtime_ns
    deduplicate(layout, shards)
    assert Path(layout.unique(0)).stat().st_mtime_ns == before
    assert not Path(layout.run, "deduplicate").exists()


@pytest.mark.parametrize("count", [0, 1])
def test_no_pair_and_one_pair_have_no_duplicates(layout, count):
    rows = [Row("a", 0.1, vector(1))][:count]
    shards = write_shards(layout, [rows])
    deduplicate(layout, shards)
    assert len(kept(layout, shards)) == count
    assert rejected(layout, shards) == {}


def picture(*lit):
    """Returns a sign with three lamps, of which some are lit."""
    pixels = np.zeros((120, 80, 3), np.uint8)
    for lamp in lit:
        pixels[10 + 35 * lamp : 40 + 35 * lamp, 25:55] = (255, 40 * lamp, 0)
    return pixels


@pytest.mark.slow
def test_pictures_that_differ_stay_however_close_their_embeddings_are(layout):
    red, copy, green = (
        Row("red", 0.3, vector(1), picture=picture(0)),
        Row("copy", 0.2, vector(1, 0.05), picture=picture(0)[2:118, 1:78]),
        Row("green", 0.1, vector(1, 0.02), picture=picture(2)),
    )
    shards = write_shards(layout, [[green], [copy], [red]])
    deduplicate(layout, shards)
    assert kept(layout, shards) == {red.key: 1, green.key: 0}
    (row,) = read_rows(layout.rejected(Stage.DEDUPLICATE, 1))
    assert row["kept_key"] == red.key
    assert row["kept_cosine"] == pytest.approx(vector(1) @ vector(1, 0.05), abs=1e-3)
    assert 0 <= row["kept_look"] < 35
    deduplicate(layout, shards, look_difference=255.0)
    assert kept(layout, shards) == {red.key: 2}


def test_tables_without_thumbnails_are_searched_by_embeddings_alone_and_that_is_said(
    layout, caplog
):
    rows = [Row("a", 0.3, vector(1)), Row("b", 0.2, vector(1, 0.05))]
    shards = write_shards(layout, [rows])
    path = layout.fetched(0, "parquet")
    pq.write_table(pq.read_table(path).drop_columns("thumbnail"), path)
    deduplicate(layout, shards)
    assert kept(layout, shards) == {rows[0].key: 1}
    (row,) = read_rows(layout.rejected(Stage.DEDUPLICATE, 0))
    assert row["kept_cosine"] > 0.95
    assert row["kept_look"] is None
    assert "before thumbnails were kept" in caplog.text
