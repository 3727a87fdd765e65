import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.edges import ALL_SOURCES, SavedEdges
from pipeline.dataset.key_hashes import key_hashes
from pipeline.level.shard import RowHashes, begin_search, levels_of, read_scores
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig
from scoring.levels.edges import LevelEdges
from scoring.levels.positions import position_of
from tests.curated_tables import Row, read_rows, write_shards
from tests.levelled import level, some_rows


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
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


@pytest.mark.slow
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

    def counted(keys):
        read.append(len(keys))
        return key_hashes(keys)

    monkeypatch.setattr("pipeline.level.shard.key_hashes", counted)
    saved = SavedEdges("", 8, {ALL_SOURCES: edges})
    levels = levels_of(layout, 0, LevelConfig(), saved, read_scores(layout, 0, LevelConfig(), ""))
    assert set(levels) == set(range(1, 9))
    assert sum(read) == 7
