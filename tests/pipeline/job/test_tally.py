import json

import pytest

from pipeline.dataset.progress import (
    ProgressReader,
    ShardProgress,
)
from pipeline.job.tally import Pace, ShardSizes, StageTally, rows_by_stage
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_text


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def report(layout, stage, shard, total, kept, rejected):
    with ShardProgress(layout, stage, shard, total) as progress:
        progress.update(kept, rejected)


def test_shards_not_begun_count_as_large_as_the_others(layout):
    report(layout, Stage.FETCH, 0, 100, 90, 10)
    tally = StageTally(Stage.FETCH)
    tally.count(ProgressReader(layout).read(), shards=4)
    assert (tally.rows, tally.rows_done, tally.rejected) == (400, 100, 10)
    assert not tally.is_done


def test_the_rate_is_that_of_the_last_while():
    tally = StageTally(Stage.FETCH)
    assert tally.rows_per_second(0.0) is None
    tally.rows_done = 100
    assert tally.rows_per_second(10.0) == 10.0
    tally.rows_done = 1100
    assert tally.rows_per_second(1000.0) == pytest.approx(1000 / 990)


def test_the_time_before_the_work_and_its_leaps_do_not_change_the_rate():
    tally = StageTally(Stage.SCORE)
    for now in range(0, 100, 5):  # the stage before it is at work
        assert tally.rows_per_second(now) is None
    tally.is_running = True
    rates = []
    for now in range(100, 400):  # 16 pairs every 8 seconds
        tally.rows_done = (now - 99) // 8 * 16
        rates.append(tally.rows_per_second(now))
    assert rates[3] is None
    assert all(1.1 < rate < 2.2 for rate in rates[15:])
    assert all(1.7 < rate < 2.1 for rate in rates[100:])


def test_a_pace_waits_for_the_work_and_forgets_what_is_long_ago():
    pace = Pace()
    for now in (0.0, 50.0):
        assert pace.per_second(now, 0, is_running=False) is None
    assert pace.per_second(60.0, 100, is_running=True) == 10.0
    for now in range(70, 400, 10):
        rate = pace.per_second(float(now), 100 + (now - 60), is_running=True)
    assert rate == pytest.approx(1.0)


def test_what_a_stage_rejects_of_a_shard_does_not_come_to_the_next(layout):
    report(layout, Stage.FETCH, 0, 100, 60, 10)
    report(layout, Stage.SCORE, 1, 80, 70, 10)
    rows = rows_by_stage(ProgressReader(layout).read(), {0: 90.0, 1: 90.0})
    assert rows[Stage.FETCH] == {0: 100, 1: 90}
    assert rows[Stage.SCORE] == {0: 90, 1: 80}
    assert rows[Stage.LEVEL] == {0: 90, 1: 70}


def test_shards_are_of_one_size_but_the_last(layout):
    for shard in range(3):
        commit_text(layout.pairs(shard), "")
    sizes = ShardSizes(layout)
    assert sizes.read() == {0: 0.0, 1: 0.0, 2: 0.0}
    balance = {"shards": 3, "pairs_per_shard": 10, "kept": 24}
    commit_text(f"{layout.run}/read.json", json.dumps(balance))
    assert sizes.read() == {0: 10, 1: 10, 2: 4}
