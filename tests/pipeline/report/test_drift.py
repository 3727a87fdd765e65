import numpy as np
import pytest

from pipeline.report.drift import drift_rows, read_drift
from schemas.shards import DatasetLayout
from scoring.levels.edges import population_stability_index
from tests.curated_tables import Row, write_shards
from tests.levelled import (
    change_edges,
    level,
    levels_by_key,
    some_rows,
)


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
def test_old_edges_keep_their_meaning_and_the_drift_is_reported(layout, tmp_path):
    rows = some_rows(200)
    shards = write_shards(layout, [rows])
    level(layout, shards)
    new = DatasetLayout(str(tmp_path / "new"))
    moved = [Row(row.name, row.score + 0.1) for row in rows]
    write_shards(new, [rows[:20] + moved[20:]])
    level(new, [0], edges_from=layout.root)
    old_levels, new_levels = levels_by_key(layout, [0]), levels_by_key(new, [0])
    assert all(new_levels[row.key] == old_levels[row.key] for row in rows[:20])
    assert read_drift(layout) is None
    drift = read_drift(new)
    assert drift.expected_counts == [25] * 8
    assert drift.counts[7] > 100
    assert drift.population_stability_index > 0.25


@pytest.mark.slow
def test_drift_is_against_the_data_that_the_edges_were_cut_in_however_often_they_are_passed_on(
    layout, tmp_path
):
    rows = some_rows(160)
    level(layout, write_shards(layout, [rows]))
    before = layout
    for step in (1, 2):
        after = DatasetLayout(str(tmp_path / f"step{step}"))
        write_shards(after, [[Row(row.name, row.score + 0.1 * step) for row in rows[: -10 * step]]])
        level(after, [0], edges_from=before.root)
        before = after
    drift = read_drift(after)
    assert drift.expected_counts == [20] * 8
    assert sum(drift.counts) == 140
    expected, found = np.full(8, 20), np.array(drift.counts)
    assert drift.population_stability_index == population_stability_index(expected, found)


@pytest.mark.slow
def test_drift_counts_what_falls_below_the_saved_cut(layout, tmp_path):
    rows = some_rows(2000)
    level(layout, write_shards(layout, [rows]), top_fraction=0.5)
    new = DatasetLayout(str(tmp_path / "new"))
    write_shards(new, [some_rows(400, 1), some_rows(2000, 2, mean=0.05)])
    level(new, [0, 1], edges_from=layout.root)
    drift = read_drift(new)
    assert drift.expected_counts == [125] * 8
    assert sum(drift.counts) < 240
    expected, found = np.array([1000, *[125] * 8]), np.array([2400 - sum(drift.counts)])
    index = population_stability_index(expected, np.append(found, drift.counts))
    assert drift.population_stability_index == pytest.approx(index)
    assert index > 0.5
    below = drift_rows(drift)[0]
    assert below["level"] == "below the cut"
    assert (below["expected"], below["count"]) == (1000, 2400 - sum(drift.counts))
    assert (below["expected_ratio"], below["ratio"] > 0.9) == (0.5, True)
    passed_on = DatasetLayout(str(tmp_path / "passed_on"))
    level(passed_on, write_shards(passed_on, [rows]), edges_from=new.root)
    assert read_drift(passed_on).population_stability_index == 0


@pytest.mark.slow
def test_drift_counts_what_falls_below_the_minimum_score(layout, tmp_path):
    rows = some_rows(400)
    level(layout, write_shards(layout, [rows]), minimum_score=0.25)
    new = DatasetLayout(str(tmp_path / "new"))
    high = [row for row in rows if np.float32(row.score) >= np.float32(0.25)]
    lower = some_rows(1600, 1, mean=-0.25)
    level(new, write_shards(new, [high, lower]), minimum_score=0.25, edges_from=layout.root)
    drift = read_drift(new)
    assert drift.counts == drift.expected_counts
    assert drift.population_stability_index > 0.25


@pytest.mark.slow
def test_edges_saved_without_the_number_below_the_cut_have_the_drift_of_the_levels_alone(
    layout, tmp_path, caplog
):
    rows = some_rows(200)
    level(layout, write_shards(layout, [rows]), top_fraction=0.5)
    change_edges(layout, lambda groups: groups[0].pop("cut_left_out"))
    new = DatasetLayout(str(tmp_path / "new"))
    level(new, write_shards(new, [rows]), edges_from=layout.root)
    assert read_drift(new).population_stability_index == 0
    assert "does not say how many pairs were left out" in caplog.text


@pytest.mark.slow
def test_edges_passed_on_keep_those_of_every_source_and_the_overall_ones(layout, tmp_path):
    low, high = some_rows(40, 1, 0.1, "jan.csv"), some_rows(40, 2, 0.5, "feb.csv")
    level(layout, write_shards(layout, [low + high]), per_source=True)
    between, last = (DatasetLayout(str(tmp_path / name)) for name in ("between", "last"))
    april = some_rows(10, 4, 0.3, "apr.csv")
    level(between, write_shards(between, [april]), per_source=True, edges_from=layout.root)
    level(last, write_shards(last, [low + high]), per_source=True, edges_from=between.root)
    assert levels_by_key(last, [0]) == levels_by_key(layout, [0])
    drift = read_drift(last)
    assert drift.counts == drift.expected_counts == [10] * 8
    assert drift.population_stability_index == 0


@pytest.mark.slow
def test_old_edges_of_no_data_and_data_of_no_source_have_no_drift(layout, tmp_path):
    level(layout, write_shards(layout, [[]]), per_source=True)
    new = DatasetLayout(str(tmp_path / "new"))
    level(new, write_shards(new, [[]]), per_source=True, edges_from=layout.root)
    assert read_drift(new).population_stability_index == 0
