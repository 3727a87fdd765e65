import io
import json

import pytest
from rich.console import Console

from pipeline.dataset.progress import (
    ProgressReader,
    ShardProgress,
    begin_step,
    end_piece,
    forget_unfinished,
)
from pipeline.job.terminal import (
    ProgressDisplay,
    scoring_pace,
    summary_table,
)
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_text


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def report(layout, stage, shard, total, kept, rejected):
    with ShardProgress(layout, stage, shard, total) as progress:
        progress.update(kept, rejected)


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


def begin(layout, stage, shard, total, kept, rejected):
    """Leaves the progress of a shard as it is while a worker is at it."""
    progress = ShardProgress(layout, stage, shard, total).__enter__()
    progress._pause_seconds = 0
    progress.update(kept, rejected)


def shown(layout, stages) -> list[str]:
    """What is printed where the output is no terminal, once."""
    written = io.StringIO()
    with ProgressDisplay(layout, stages, Console(file=written, width=200)):
        pass
    return written.getvalue().splitlines()


@pytest.fixture
def read(layout):
    """The pairs of three shards, of which the last is smaller."""
    for shard in range(3):
        commit_text(layout.pairs(shard), "")
    balance = {"shards": 3, "pairs_per_shard": 300, "kept": 610}
    commit_text(f"{layout.run}/read.json", json.dumps(balance))


def test_a_stage_s_total_is_what_the_stage_before_it_kept_and_stays_so(layout, read):
    begin(layout, Stage.FETCH, 2, 10, 3, 1)
    assert shown(layout, [Stage.FETCH])[0].startswith("fetch: 4 of 610 pairs, 0 of 3 shards done")
    report(layout, Stage.FETCH, 0, 300, 280, 20)
    report(layout, Stage.FETCH, 1, 300, 270, 30)
    report(layout, Stage.FETCH, 2, 10, 6, 4)
    totals = []
    for shard, rows in ((2, 6), (0, 280), (1, 270)):
        begin(layout, Stage.SCORE, shard, rows, rows // 2, 0)
        totals.append(shown(layout, [Stage.SCORE])[0].split(",")[0])
        report(layout, Stage.SCORE, shard, rows, rows, 0)
    assert totals == ["score: 3 of 556 pairs", "score: 146 of 556 pairs", "score: 421 of 556 pairs"]


def test_the_total_of_what_is_numbered_anew_is_the_announced_one_or_not_given(layout, read):
    report(layout, Stage.PACK, 0, 256, 256, 0)
    assert shown(layout, [Stage.PACK]) == ["pack: 256 pairs, 1 shards done, 0 rejected"]
    begin_step(layout, Stage.PACK, "", 600)
    assert shown(layout, [Stage.PACK]) == ["pack: 256 of 600 pairs, 1 shards done, 0 rejected"]


def test_the_steps_of_a_stage_are_counted_until_the_next_job(layout, read):
    begin_step(layout, Stage.DEDUPLICATE, "search", 3)
    for piece in ("exact-0", "near-0", "near-0"):
        end_piece(layout, Stage.DEDUPLICATE, "search", piece)
    assert shown(layout, [Stage.DEDUPLICATE]) == ["deduplicate: search, 2 of 3 done"]
    forget_unfinished(layout)
    assert shown(layout, [Stage.DEDUPLICATE]) == []


def test_a_job_without_news_says_that_it_is_alive(layout, read, monkeypatch):
    monkeypatch.setattr("pipeline.job.terminal.SILENCE_SECONDS", 0.0)
    assert "score: getting ready, 0 s since the start" in shown(layout, [Stage.SCORE])
    begin(layout, Stage.FETCH, 0, 300, 0, 0)
    lines = shown(layout, [Stage.FETCH])
    assert lines[-1] == "fetch: 0 of 610 pairs, 0 of 3 shards done, 0 rejected"


def test_what_is_being_prepared_is_what_follows_the_work_seen_last(layout, monkeypatch):
    monkeypatch.setattr("pipeline.job.terminal.SILENCE_SECONDS", 0.0)
    stages = [Stage.READ, Stage.FETCH, Stage.SCORE]
    assert shown(layout, stages)[-1].startswith("read: getting ready")
    report(layout, Stage.READ, 0, 0, 10, 1)  # of a text file nobody knows how many rows it has
    commit_text(layout.pairs(0), "")
    balance = {"shards": 1, "pairs_per_shard": 10, "kept": 10}
    commit_text(f"{layout.run}/read.json", json.dumps(balance))
    report(layout, Stage.FETCH, 0, 10, 10, 0)
    assert shown(layout, stages)[-1].startswith("score: getting ready")


def test_the_end_says_which_side_of_scoring_waited(layout):
    assert scoring_pace(ProgressReader(layout).read()) is None
    for shard, seconds in enumerate(({"feed": 3.0, "model": 1.0}, {"feed": 1.0, "model": 1.0})):
        with ShardProgress(layout, Stage.SCORE, shard, 4000) as progress:
            progress.update(3900, 100)
            progress.took(seconds)
    assert scoring_pace(ProgressReader(layout).read()) == (
        "score: pictures ready at 2,000 pairs/s, the model takes 4,000 pairs/s in each worker: the "
        "model waits for pictures: give it more cores (score.decode_threads), or more workers"
    )
    with ShardProgress(layout, Stage.SCORE, 0, 4000) as progress:
        progress.update(4000, 0)
        progress.took({"feed": 1.0, "model": 9.0})
    pace = scoring_pace(ProgressReader(layout).read())
    assert pace is not None and pace.endswith("800 pairs/s in each worker: the model limits")
