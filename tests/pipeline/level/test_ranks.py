"""Levels by the mean of several signals' ranks, held against a sort of all pairs in numpy."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.level.ranks
from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.ownership import WORK_FILES
from schemas.columns import signal_field, write_table
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.storage import commit_file
from tests.curated_tables import Row, write_shards
from tests.levelled import level, levels_by_key, some_rows

BY = "rank_mean:clip_score,taste,flat:2,1,0.5"


def write_signals(layout, shards, rows, seed=0):
    """Adds a signal with many ties and one that is the same for all; returns the first by key."""
    rng = np.random.default_rng(seed)
    taste = {row.key: float(rng.integers(-4, 5)) / 8 for row in sorted(rows, key=lambda r: r.key)}
    taste |= {row.key: float("nan") for row in rows if row.name == "odd"}
    for shard in shards:
        path = layout.scored(shard)
        table = pq.read_table(path)
        metadata = table.schema.metadata
        for name in ("taste", "flat"):
            values = [taste[key] if name == "taste" else 0.25 for key in table["key"].to_pylist()]
            field = signal_field(name, "for a test", json.dumps({"fingerprint": f"{name}{seed}"}))
            table = table.append_column(field, pa.array(values, pa.float32()))
        with commit_file(path) as file:
            write_table(table.replace_schema_metadata(metadata), file)
    return taste


def expected(rows, taste, num_levels=8):
    """Returns the levels that a sort of all pairs gives, by key."""
    keys = pa.array([row.key for row in rows])
    hashes = key_hashes(keys)
    columns = [
        np.array([row.score for row in rows], np.float32),
        np.array([taste[row.key] for row in rows], np.float32),
        np.full(len(rows), 0.25, np.float32),
    ]
    total = np.zeros(len(rows))
    for weight, column in zip((2.0, 1.0, 0.5), columns, strict=True):
        total += weight * (np.argsort(np.lexsort((hashes, column))) + 0.5)
    value = (total / (3.5 * len(rows))).astype(np.float32)
    order = np.lexsort((hashes, value))
    return {rows[row].key: 1 + num_levels * r // len(rows) for r, row in enumerate(order)}


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.fixture
def few_at_once(monkeypatch):
    """So few pairs sorted at once that there are several parts."""
    monkeypatch.setattr(pipeline.level.ranks, "PAIRS_AT_ONCE", 30)


@pytest.mark.slow
def test_levels_by_a_mean_of_ranks_are_those_of_a_sort(layout):
    rows = some_rows(90)
    shards = write_shards(layout, [rows[:50], rows[50:51], [], rows[51:]])
    taste = write_signals(layout, shards, rows)
    level(layout, shards, by=BY)
    assert levels_by_key(layout, shards) == expected(rows, taste)
    assert not Path(layout.run, "level").exists()
    edges = json.loads(Path(layout.edges).read_text())
    assert edges["settings"]["by"] == BY
    assert 0 < edges["groups"][0]["edges"][0]["value"] < 1


@pytest.mark.slow
def test_parts_and_shards_change_no_level_and_a_second_run_no_file(layout, tmp_path, few_at_once):
    rows = some_rows(100, seed=3)
    shards = write_shards(layout, [rows[::3], rows[1::3], rows[2::3]])
    taste = write_signals(layout, shards, rows)
    level(layout, shards, by=BY, num_levels=5)
    assert levels_by_key(layout, shards) == expected(rows, taste, 5)
    before = {path: path.stat().st_mtime_ns for path in Path(layout.root).rglob("levelled/*")}
    level(layout, shards, by=BY, num_levels=5)
    assert before == {p: p.stat().st_mtime_ns for p in Path(layout.root).rglob("levelled/*")}
    Path(layout.levelled(1)).unlink()  # as after a kill
    level(layout, shards, by=BY, num_levels=5)
    assert levels_by_key(layout, shards) == expected(rows, taste, 5)


@pytest.mark.slow
def test_what_a_killed_ranking_leaves_is_known_as_ours_and_used_or_removed(
    layout, few_at_once, monkeypatch
):
    rows = some_rows(70)
    shards = write_shards(layout, [rows[:35], rows[35:]])
    taste = write_signals(layout, shards, rows)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.level.transform.remove_rank_files", lambda count, layout: count)
        level(layout, shards, by=BY)
    folder = Path(layout.run, "level")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(left) == 2 + 3 * 3 + 2
    assert all(WORK_FILES["level"].fullmatch(name) for name in left)
    Path(layout.levelled(0)).unlink()
    next(folder.rglob("values/00000.bin")).unlink()
    next(folder.rglob("ranks/00-00001.bin")).unlink()
    level(layout, shards, by=BY)
    assert levels_by_key(layout, shards) == expected(rows, taste)
    assert not folder.exists()


@pytest.mark.slow
def test_pairs_that_are_left_out_have_no_rank(layout):
    rows = some_rows(60)
    shards = write_shards(layout, [rows[:25], rows[25:]])
    taste = write_signals(layout, shards, rows)
    level(layout, shards, by=BY, keep="taste > -0.3", minimum_score=0.22)
    stay = [r for r in rows if taste[r.key] > -0.3 and np.float32(r.score) >= np.float32(0.22)]
    assert 0 < len(stay) < 50
    assert levels_by_key(layout, shards) == expected(stay, taste)


@pytest.mark.slow
def test_a_pair_without_a_number_is_named_and_can_be_left_out(layout):
    rows = [*some_rows(12), Row("odd", 0.2)]
    shards = write_shards(layout, [rows])
    taste = write_signals(layout, shards, rows)
    for by in (BY, "taste"):
        with pytest.raises((DatasetError, RuntimeError), match="taste of 1 pairs is not a number"):
            level(layout, shards, by=by)
    level(layout, shards, by=BY, keep="not isnan(taste)")
    assert levels_by_key(layout, shards) == expected(rows[:12], taste)


@pytest.mark.slow
def test_a_dataset_without_pairs_has_no_ranks(layout):
    shards = write_shards(layout, [[], []])
    write_signals(layout, shards, [])
    level(layout, shards, by=BY)
    assert levels_by_key(layout, shards) == {}
