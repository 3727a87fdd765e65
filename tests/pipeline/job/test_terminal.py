import io

import pytest
from rich.console import Console

from pipeline.dataset.progress import ProgressReader, ShardProgress, forget_unfinished
from pipeline.job.terminal import (
    ProgressDisplay,
    StageTally,
    summary_table,
)
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def report(layout, stage, shard, total, kept, rejected):
    with ShardProgress(layout, stage, shard, total) as progress:
        progress.update(kept, rejected)


def test_a_shard_that_failed_says_so_and_is_forgotten_by_the_next_job(layout):
    report(layout, Stage.FETCH, 0, 10, 8, 2)
    with (
        pytest.raises(KeyboardInterrupt),
        ShardProgress(layout, Stage.SCORE, 0, 8) as progress,
    ):
        progress.update(3, 0)
        raise KeyboardInterrupt
    states = ProgressReader(layout).read()
    assert [(state.stage, state.state) for state in states] == [
        (Stage.FETCH, "done"),
        (Stage.SCORE, "failed"),
    ]
    assert [state.stage for state in forget_unfinished(layout)] == [Stage.SCORE]
    assert [state.stage for state in ProgressReader(layout).read()] == [Stage.FETCH]


def test_a_reader_sees_what_changed_since_it_read_last(layout):
    reader = ProgressReader(layout)
    assert reader.read() == []
    report(layout, Stage.FETCH, 1, 10, 8, 2)
    assert [state.rows_done for state in reader.read()] == [10]
    report(layout, Stage.FETCH, 1, 12, 9, 3)
    report(layout, Stage.READ, 2, 5, 5, 0)
    assert [(state.stage, state.rows_done) for state in reader.read()] == [
        (Stage.READ, 5),
        (Stage.FETCH, 12),
    ]


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


def test_without_a_terminal_progress_is_plain_lines(layout):
    report(layout, Stage.FETCH, 0, 10, 8, 2)
    written = io.StringIO()
    console = Console(file=written, width=200)
    with ProgressDisplay(layout, [Stage.FETCH, Stage.SCORE], console) as display:
        display.refresh()
    assert written.getvalue() == "fetch: 10 of 10 pairs, 1 of 1 shards done, 2 rejected\n"


def test_on_a_terminal_progress_is_a_table_of_the_stages(layout):
    report(layout, Stage.FETCH, 0, 10, 8, 2)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    with ProgressDisplay(layout, [Stage.FETCH, Stage.SCORE], console):
        pass
    shown = written.getvalue()
    assert "time left" in shown
    assert "fetch" in shown
    assert "score" in shown


def test_the_summary_has_each_stage_with_its_reasons():
    written = io.StringIO()
    counts = StageCounts(rows_in=10, kept=7, rejected={"timed_out": 1, "http_status": 2})
    Console(file=written, width=120).print(summary_table({"fetch": counts}))
    assert "http_status 2, timed_out 1" in written.getvalue()
