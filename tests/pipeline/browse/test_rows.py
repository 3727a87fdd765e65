"""Rows of a dataset as DuckDB finds them."""

import shutil
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from pipeline.browse.page import Page
from pipeline.browse.rows import DatasetRows, shard_of
from pipeline.select.run import Selection, make_selection
from schemas.columns import KEPT_FIELD
from schemas.errors import ConfigError, DatasetError
from schemas.records import TRAIN_SCHEMA
from schemas.stages import Stage
from tests.curations import quiet_console
from tests.datasets import add_signal, finish, write_dataset


def test_every_row_is_shown_once_kept_or_not(rows):
    everything = rows.count("")
    seen = [row for page in range(5) for row in rows.page("", "score, best first", page, size=10)]
    assert len(seen) == everything
    assert len({(row["file_of_row"], row["file_row_number"]) for row in seen}) == everything
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


def test_columns_of_the_input_can_be_called_as_duckdb_calls_its_own(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    for path in (tmp_path / "data" / "train").glob("*.parquet"):
        table = pq.read_table(path)
        for name in ("filename", "select", 'a "b"'):
            field = pa.field(name, pa.string(), metadata={KEPT_FIELD: b"1"})
            table = table.append_column(field, pa.array(["mine"] * len(table)))
        pq.write_table(table, path)
    rows = DatasetRows(str(tmp_path / "data"))
    where = 'filename = \'mine\' and "select" = \'mine\' and "a ""b""" = \'mine\''
    assert rows.count(where) == 38
    assert rows.page(where, "", 0, size=1)[0]["file_of_row"].endswith("train/000000.parquet")
    page = TestClient(Page(rows).app(), base_url="http://127.0.0.1")
    assert page.get("/", params={"where": where, "state": "all"}).status_code == 200
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


def taste_of(score: float) -> float:
    """Returns a signal whose ranks give the levels of `write_levelled`, reversed within each."""
    level, rest = divmod(4 * (score + 0.3), 1)
    return level + (1 - rest) / 2


@pytest.mark.slow
def test_edges_and_orders_and_conditions_go_by_the_signal_that_decides_the_levels(tmp_path):
    root = tmp_path / "data"
    write_dataset(root)
    add_signal(root, "taste", taste_of)
    finish(root, by="taste")
    rows = DatasetRows(str(root))
    below, above = rows.edge(2, size=50)
    for side, is_falling in ((below, True), (above, False)):
        tastes = [row["taste"] for row in side]
        assert tastes == sorted(tastes, reverse=is_falling)
        scores = [row["clip_score"] for row in side]
        assert scores == sorted(scores, reverse=not is_falling) and len(set(scores)) > 3
    client = TestClient(Page(rows).app(), base_url="http://127.0.0.1")
    assert "By taste, whose ranks decide" in client.get("/edges?level=2").text
    highest = rows.page("", "taste, highest first", 0)
    assert highest[0]["taste"] == max(row["taste"] for row in highest[:38])
    shown = client.get("/?where=taste+>+2&state=all").text
    assert f"<h1>{rows.count('taste > 2')} row" in shown and rows.count("taste > 2") > 5
    assert ">taste, lowest first</option>" in shown
    assert client.get("/?state=rejected").status_code == 200  # rows without the column
    rows.close()


@pytest.mark.slow
def test_edges_between_levels_by_a_mean_of_ranks_are_in_the_order_of_that_mean(tmp_path):
    root = tmp_path / "data"
    write_dataset(root)
    add_signal(root, "taste", lambda score: (7 * score) % 1)
    finish(root, by="rank_mean:clip_score,taste:1,3")
    rows = DatasetRows(str(root))
    kept = rows.page("reason is null", "", 0)
    ranks = {
        name: {row["key"]: n for n, row in enumerate(sorted(kept, key=lambda row: row[name]))}
        for name in ("clip_score", "taste")
    }
    for side, is_falling in zip(rows.edge(2, size=50), (True, False), strict=True):
        means = [ranks["clip_score"][row["key"]] + 3 * ranks["taste"][row["key"]] for row in side]
        assert means == sorted(means, reverse=is_falling) and len(means) > 3
    client = TestClient(Page(rows).app(), base_url="http://127.0.0.1")
    assert "By rank_mean:clip_score,taste:1,3" in client.get("/edges?level=2").text
    rows.close()
    with pytest.raises(ConfigError, match="by ranks over all pairs: leave out --cut-levels"):
        chosen = Selection(command="select", parents=(str(root),), num_levels=3)
        make_selection(chosen, str(tmp_path / "out"), quiet_console())
