"""What decides levels beside the score."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.level.signals import (
    check_level_settings,
    level_settings,
    may_stay,
    signal_fingerprint,
    signal_rows,
    signals_of,
    uses_signals,
)
from schemas.columns import signal_field, table_from_records, with_kept, write_table
from schemas.errors import ConfigError
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.storage import commit_file
from scoring.config import LevelConfig
from tests.curated_tables import Row, scored

SCORES = (0.1, 0.2, 0.3)


@pytest.fixture
def layout(tmp_path):
    """A scored shard of three pairs with the signal `taste` of 3, 2 and 1."""
    layout = DatasetLayout(str(tmp_path))
    rows = [scored(Row(f"{n}", score)) for n, score in enumerate(SCORES)]
    table = table_from_records(rows, SCORED_SCHEMA)
    made = json.dumps({"fingerprint": "abc", "head": "h"})
    schema = with_kept(SCORED_SCHEMA, [signal_field("taste", "how it pleases", made)])
    columns = [*table.columns, pa.array([3, 2, 1], pa.float32())]
    with commit_file(layout.scored(0)) as file:
        write_table(pa.table(columns, schema=schema), file, {"fingerprint": "s"})
    return layout


def keys(*places):
    return pa.array([Row(f"{n}", 0.0).key for n in places])


def test_settings_that_came_later_decide_only_where_they_do():
    plain = level_settings(LevelConfig())
    assert not {"by", "keep"} & set(plain)
    assert level_settings(LevelConfig(by="taste"))["by"] == "taste"
    assert "num_levels" in plain
    assert "num_levels" not in level_settings(LevelConfig(), ("num_levels",))
    found = [uses_signals(LevelConfig(**one)) for one in ({}, {"by": "x"}, {"keep": "x > 1"})]
    assert found == [False, True, True]


def test_the_signals_that_levels_need_are_those_that_are_named():
    assert check_level_settings(LevelConfig(), []) == ()
    config = LevelConfig(by="taste", keep="nsfw < 0.5 and clip_score > 0 and taste > 0")
    assert check_level_settings(config, ["taste", "nsfw", "other"]) == ("nsfw", "taste")
    with pytest.raises(ConfigError, match=r"'taste' is neither .* \(it has none\)"):
        check_level_settings(LevelConfig(by="taste"), [])
    with pytest.raises(ConfigError, match=r"levels\.keep"):
        check_level_settings(LevelConfig(keep="nsfw <"), ["nsfw"])


def test_a_fingerprint_names_what_decides_and_nothing_else(layout):
    assert signals_of(layout, 0) == {"taste": "abc"}
    assert signal_fingerprint(layout, 0, LevelConfig()) == ""
    assert signal_fingerprint(layout, 0, LevelConfig(by="taste")) == " taste:abc"
    assert signal_fingerprint(layout, 0, LevelConfig(keep="clip_score > 0")) == ""


@pytest.mark.parametrize(
    ("settings", "fulfil", "high_enough"),
    [
        ({}, [True, True], [True, True]),
        ({"keep": "taste > 2"}, [False, True], [True, True]),
        ({"by": "taste", "keep": "clip_score > 0.2"}, [True, False], [True, True]),
        ({"minimum_score": 0.3}, [True, True], [True, False]),
    ],
)
def test_pairs_stand_in_their_own_order_with_what_decides(layout, settings, fulfil, high_enough):
    scores = np.array([0.3, 0.1], np.float32)
    config = LevelConfig(**settings)
    rows = signal_rows(layout, 0, config, keys(2, 0), scores)
    assert rows["clip_score"].to_numpy().tolist() == scores.tolist()
    assert ("taste" in rows.column_names) == ("taste" in str(settings))
    if "taste" in rows.column_names:
        assert rows["taste"].to_pylist() == [1.0, 3.0]
    assert [which.tolist() for which in may_stay(rows, config)] == [fulfil, high_enough]
