import json
from pathlib import Path

import numpy as np
import pytest

from schemas.shards import DatasetLayout
from tests.curated_tables import Row, write_shards
from tests.levelled import (
    expected_levels,
    forget_overall_edges,
    level,
    levels_by_key,
    some_rows,
)


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_source_that_edges_without_overall_ones_do_not_know_is_named(layout, tmp_path):
    level(layout, write_shards(layout, [some_rows(20, source="jan.csv")]), per_source=True)
    forget_overall_edges(layout)
    new = DatasetLayout(str(tmp_path / "new"))
    shards = write_shards(new, [some_rows(20, source="feb.csv")])
    with pytest.raises(Exception, match=r"no edges for 'feb\.csv', only for jan\.csv, and no"):
        level(new, shards, per_source=True, edges_from=layout.root)
