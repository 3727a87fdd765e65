import json
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.progress import ProgressReader
from pipeline.level.edges import ALL_SOURCES, SavedEdges
from pipeline.level.shard import RowHashes, begin_search, levels_of, read_scores
from pipeline.level.transform import AssignLevels
from pipeline.report.drift import drift_rows, read_drift
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import LevelConfig
from scoring.levels.edges import LevelEdges, population_stability_index
from scoring.levels.positions import position_of
from tests.curated_tables import Row, read_rows, write_shards


def level(layout, shards, **settings):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        levelled = pipeline | beam.Create(shards) | AssignLevels(layout, LevelConfig(**settings))
        assert_that(levelled, equal_to(shards))


def some_rows(count, seed=0, mean=0.25, source="pairs.csv"):
    scores = np.random.default_rng(seed).normal(mean, 0.05, count).round(3)
    return [
        Row(f"{seed}-{place}", float(score), source=source) for place, score in enumerate(scores)
    ]


def levels_by_key(layout, shards):
    rows = [row for shard in shards for row in read_rows(layout.levelled(shard))]
    return {row["key"]: row["alignment_level"] for row in rows}


def expected_levels(rows, num_levels):
    rows = sorted(rows, key=lambda row: (np.float32(row.score), row.key))
    return {row.key: 1 + num_levels * rank // len(rows) for rank, row in enumerate(rows)}


def change_edges(layout, change):
    values = json.loads(Path(layout.edges).read_text())
    change(values["groups"])
    Path(layout.edges).write_text(json.dumps(values))


def forget_overall_edges(layout):
    change_edges(layout, lambda groups: groups.remove(next(g for g in groups if not g["source"])))


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_levels_are_those_of_all_shards_sorted_together(layout):
    rows = some_rows(100)
    shards = write_shards(layout, [rows[:50], rows[50:51], [], rows[51:]])
    level(layout, shards)
    assert levels_by_key(layout, shards) == expected_levels(rows, 8)


def test_what_precedes_the_levels_of_a_shard_says_how_far_it_is(layout, tmp_path):
    shards = write_shards(layout, [some_rows(10, 1), some_rows(10, 2)])
    level(layout, shards)
    steps = [(s.step, s.done, s.total) for s in ProgressReader(layout).read_steps()]
    assert steps == [("count", 2, 2), ("tally", 2, 2)]
    new = DatasetLayout(str(tmp_path / "new"))
    level(new, write_shards(new, [some_rows(10, 3)]), edges_from=layout.root)
    steps = [(s.step, s.done, s.total) for s in ProgressReader(new).read_steps()]
    assert steps == [("tally", 1, 1)]


def test_the_division_into_shards_does_not_change_a_level(layout, tmp_path):
    rows = some_rows(60)
    one = write_shards(layout, [rows])
    level(layout, one, num_levels=5)
    other = DatasetLayout(str(tmp_path / "other"))
    three = write_shards(other, [rows[::3], rows[1::3], rows[2::3]])
    level(other, three, num_levels=5)
    assert levels_by_key(layout, one) == levels_by_key(other, three)


def test_the_edges_file_has_the_counts_and_ranges_of_the_levels(layout):
    rows = some_rows(80)
    shards = write_shards(layout, [rows[:30], rows[30:]])
    level(layout, shards)
    edges = json.loads(Path(layout.edges).read_text())
    levels = expected_levels(rows, 8)
    assert edges["num_levels"] == 8
    assert edges["count"] == 80
    for entry in edges["levels"]:
        scores = [np.float32(r.score) for r in rows if levels[r.key] == entry["level"]]
        assert (entry["count"], entry["min_score"], entry["max_score"]) == (
            10,
            min(scores),
            max(scores),
        )


def test_a_second_run_changes_no_file(layout):
    shards = write_shards(layout, [some_rows(20)])
    level(layout, shards)
    before = {path: path.stat().st_mtime_ns for path in Path(layout.root, "levelled").iterdir()}
    level(layout, shards)
    after = {path: path.stat().st_mtime_ns for path in Path(layout.root, "levelled").iterdir()}
    assert before == after


def test_a_changed_shard_changes_the_levels_of_the_others(layout):
    rows = some_rows(40)
    shards = write_shards(layout, [rows[:20], rows[20:]])
    level(layout, shards)
    higher = [Row(row.name, row.score + 1) for row in rows[20:]]
    write_shards(layout, [rows[:20], higher])
    level(layout, shards)
    assert levels_by_key(layout, shards) == expected_levels(rows[:20] + higher, 8)


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


def test_the_top_fraction_is_levelled_and_the_rest_rejected(layout):
    rows = some_rows(50)
    shards = write_shards(layout, [rows[:10], rows[10:]])
    level(layout, shards, top_fraction=0.3)
    best = sorted(rows, key=lambda row: (np.float32(row.score), row.key))[-15:]
    assert levels_by_key(layout, shards) == expected_levels(best, 8)
    rejected = [row for s in shards for row in read_rows(layout.rejected(Stage.LEVEL, s))]
    assert [row["reason"] for row in rejected] == ["below_top_fraction"] * 35


def test_each_source_can_have_its_own_edges(layout):
    low, high = some_rows(24, 1, 0.1, "low.csv"), some_rows(32, 2, 0.5, "high.csv")
    shards = write_shards(layout, [low[:10] + high[:5], low[10:] + high[5:]])
    level(layout, shards, per_source=True)
    assert levels_by_key(layout, shards) == {
        **expected_levels(low, 8),
        **expected_levels(high, 8),
    }


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


def test_a_source_without_edges_is_levelled_by_the_overall_ones(layout, tmp_path, caplog):
    low, high = some_rows(40, 1, 0.1, "jan.csv"), some_rows(40, 2, 0.5, "feb.csv")
    level(layout, write_shards(layout, [low, high]), per_source=True)
    new, other = (DatasetLayout(str(tmp_path / name)) for name in ("new", "other"))
    march = [Row(row.name, row.score, source="mar.csv") for row in low + high]
    january = some_rows(20, 3, 0.1, "jan.csv")
    level(new, write_shards(new, [january, march]), per_source=True, edges_from=layout.root)
    levels = levels_by_key(new, [0, 1])
    assert {row.key: levels[row.key] for row in march} == expected_levels(low + high, 8)
    assert max(levels[row.key] for row in january) == 8  # by the overall edges: 4
    assert "has no edges for mar.csv: the overall ones were used" in caplog.text
    saved = json.loads(Path(new.edges).read_text())
    assert saved["sources_without_edges"] == ["mar.csv"]
    assert {group["source"]: sum(group["counts"]) for group in saved["groups"]} == {
        None: 80,
        "feb.csv": 0,
        "jan.csv": 20,
    }
    mixed = january + march
    write_shards(other, [mixed[1::2], [], mixed[::2]])
    level(other, [2, 0, 1], per_source=True, edges_from=layout.root)
    assert levels_by_key(other, [0, 1, 2]) == levels
    assert (
        Path(other.edges).read_text().split('"groups"')[1]
        == (Path(new.edges).read_text().split('"groups"')[1])
    )


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


def test_a_source_that_edges_without_overall_ones_do_not_know_is_named(layout, tmp_path):
    level(layout, write_shards(layout, [some_rows(20, source="jan.csv")]), per_source=True)
    forget_overall_edges(layout)
    new = DatasetLayout(str(tmp_path / "new"))
    shards = write_shards(new, [some_rows(20, source="feb.csv")])
    with pytest.raises(Exception, match=r"no edges for 'feb\.csv', only for jan\.csv, and no"):
        level(new, shards, per_source=True, edges_from=layout.root)


def test_old_edges_of_no_data_and_data_of_no_source_have_no_drift(layout, tmp_path):
    level(layout, write_shards(layout, [[]]), per_source=True)
    new = DatasetLayout(str(tmp_path / "new"))
    level(new, write_shards(new, [[]]), per_source=True, edges_from=layout.root)
    assert read_drift(new).population_stability_index == 0


def test_old_edges_that_do_not_fit_are_refused(layout, tmp_path):
    level(layout, write_shards(layout, [some_rows(20)]))
    with pytest.raises(ConfigError, match=r"there is no .*edges\.json"):
        begin_search([], layout, LevelConfig(edges_from=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigError, match="has 8 levels"):
        begin_search([], layout, LevelConfig(num_levels=4, edges_from=layout.root))
    with pytest.raises(ConfigError, match="per_source is True"):
        begin_search([], layout, LevelConfig(per_source=True, edges_from=layout.root))
    with pytest.raises(ConfigError, match="top_fraction"):
        LevelConfig(edges_from=layout.root, top_fraction=0.5)


def test_shards_that_are_not_deduplicated_are_named(layout):
    with pytest.raises(Exception, match="is missing: deduplicate"):
        level(layout, [7])


def test_an_empty_dataset_has_no_levels(layout):
    level(layout, write_shards(layout, [[]]))
    assert read_rows(layout.levelled(0)) == []
    assert json.loads(Path(layout.edges).read_text())["count"] == 0


def test_key_hashes_are_the_first_sixteen_digits():
    keys = [row.key for row in some_rows(30)]
    assert key_hashes(pa.array(keys)).tolist() == [int(key[:16], 16) for key in keys]
    rows, places = np.array([3, 9, 20, 4]), np.array([2, 0])
    found = RowHashes(pa.array(keys), rows)[places]
    assert found.tolist() == [int(keys[20][:16], 16), int(keys[3][:16], 16)]
    assert RowHashes(pa.array(keys), rows)[np.empty(0, np.intp)].tolist() == []


def test_no_more_keys_are_read_than_tie_with_an_edge(layout, monkeypatch):
    write_shards(layout, [[Row(str(place), place / 1000) for place in range(400)]])
    edges = LevelEdges(
        8, 0, tuple(position_of(place / 1000, 1 << 63) for place in range(50, 400, 50))
    )
    read = []
    monkeypatch.setattr(
        "pipeline.level.shard.key_hashes",
        lambda keys: read.append(len(keys)) or key_hashes(keys),
    )
    saved = SavedEdges("", 8, {ALL_SOURCES: edges})
    levels = levels_of(layout, 0, LevelConfig(), saved, read_scores(layout, 0, LevelConfig()))
    assert set(levels) == set(range(1, 9))
    assert sum(read) == 7
