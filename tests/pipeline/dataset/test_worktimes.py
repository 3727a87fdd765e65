import time

import pytest

from pipeline.dataset.worktimes import (
    REPORT,
    Covered,
    StepTime,
    begin_times,
    forget_times,
    read_times,
    replacing_times,
    timed,
)
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage


def work(layout: DatasetLayout, stage: str, step: str, rows: int, device: str = "cpu") -> None:
    with timed(layout, stage, step) as piece:
        piece.rows, piece.device, piece.bytes = rows, device, 10 * rows


def test_the_pieces_of_a_step_are_added_up_and_the_first_told_apart(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    work(layout, Stage.FETCH, "fetch", 3)
    work(layout, Stage.FETCH, "fetch", 4)
    work(layout, Stage.LEVEL, "tally", 9)
    (step,) = read_times(layout, Stage.FETCH)
    assert (step.step, step.pieces, step.rows, step.bytes) == ("fetch", 2, 7, 70)
    assert (step.processes, step.first_rows) == (1, 3)
    assert step.seconds >= step.first_seconds >= 0
    assert step.cpu_seconds >= step.first_cpu_seconds >= 0


def test_what_a_job_and_the_one_that_goes_on_did_is_added_up(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    for rows in (3, 4):
        begin_times(layout)
        work(layout, Stage.FETCH, "fetch", rows)
    (step,) = read_times(layout, Stage.FETCH)
    assert (step.pieces, step.rows, step.processes, step.first_rows) == (2, 7, 2, 7)


def test_a_piece_that_failed_is_not_counted(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with pytest.raises(ZeroDivisionError), timed(layout, Stage.FETCH, "fetch"):
        raise ZeroDivisionError
    assert read_times(layout, Stage.FETCH) == []


def test_each_kind_of_device_is_counted_by_itself(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    work(layout, Stage.SCORE, "score", 3)
    work(layout, Stage.SCORE, "score", 5, "cuda")
    found = {step.device: step.rows for step in read_times(layout, Stage.SCORE)}
    assert found == {"cpu": 3, "cuda": 5}


def test_work_whose_output_is_removed_is_forgotten_and_no_other(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    for stage, step in ((Stage.READ, "write"), (Stage.FETCH, "fetch"), (REPORT, "report")):
        work(layout, stage, step, 3)
    stranger = tmp_path / "_run" / "times" / "fetch-mine.json"
    stranger.write_text("mine")
    forget_times(layout, (*Stage.FETCH.onward, REPORT))
    assert read_times(layout, Stage.FETCH) == read_times(layout, REPORT) == []
    assert [step.rows for step in read_times(layout, Stage.READ)] == [3]
    assert stranger.read_text() == "mine"
    work(layout, Stage.FETCH, "fetch", 4)
    assert [step.rows for step in read_times(layout, Stage.FETCH)] == [4]


def test_pieces_that_overlap_tell_what_starting_took_in_place_of_a_first_one(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    for rows, start in ((3, 0.25), (4, 0.5)):
        with timed(layout, Stage.FETCH, "fetch", tells_start=True) as piece:
            piece.rows, piece.first_seconds, piece.first_cpu_seconds = rows, start, 2 * start
    (step,) = read_times(layout, Stage.FETCH)
    assert (step.pieces, step.rows, step.processes, step.first_rows) == (2, 7, 1, 0)
    assert (step.first_seconds, step.first_cpu_seconds) == (0.75, 1.5)


def test_steps_of_a_stage_at_the_same_time_share_its_seconds(tmp_path):
    layout, began = DatasetLayout(str(tmp_path)), time.perf_counter()
    with timed(layout, Stage.FETCH, "retry"), timed(layout, Stage.FETCH, "fetch"):
        sum(range(1_000_000))
    passed = time.perf_counter() - began
    steps = read_times(layout, Stage.FETCH)
    assert [step.step for step in steps] == ["fetch", "retry"]
    assert 0 < sum(step.seconds for step in steps) <= passed


def test_fields_that_later_versions_add_do_not_matter(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    folder = tmp_path / "_run" / "times"
    folder.mkdir(parents=True)
    text = '{"steps": [{"step": "fetch", "device": "cpu", "rows": 3, "joules": 7}]}'
    (folder / f"fetch-{'a' * 32}.json").write_text(text)
    assert read_times(layout, Stage.FETCH) == [StepTime(step="fetch", rows=3)]


@pytest.mark.parametrize("text", ["", "[]", '{"steps": 3}', '{"steps": [{"rows": 3}]}'])
def test_a_file_that_says_nothing_of_work_is_named(tmp_path, text):
    path = tmp_path / "_run" / "times" / f"fetch-{'a' * 32}.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DatasetError, match=path.name):
        read_times(DatasetLayout(str(tmp_path)), Stage.FETCH)


def test_time_in_which_several_pieces_were_worked_on_counts_once():
    covered = Covered()
    assert covered.add(5.0, 6.0) == 1.0
    assert covered.add(0.0, 8.0) == 7.0
    assert covered.add(2.0, 7.0) == 0.0
    assert covered.add(7.0, 10.0) == 2.0
    assert covered.add(12.0, 13.0) == 1.0
    assert covered.add(9.0, 12.5) == 2.0


def test_pieces_at_the_same_time_share_its_seconds(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with timed(layout, Stage.FETCH, "fetch") as outer, timed(layout, Stage.FETCH, "fetch") as inner:
        sum(range(100_000))
    assert inner.seconds > 0
    (step,) = read_times(layout, Stage.FETCH)
    assert step.seconds == pytest.approx(inner.seconds + outer.seconds)
    assert step.pieces == 2


def test_what_was_known_of_work_is_replaced_once_all_of_it_has_succeeded(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with replacing_times(layout, REPORT):
        work(layout, REPORT, "render", 3)
    with pytest.raises(ZeroDivisionError), replacing_times(layout, REPORT):
        work(layout, REPORT, "render", 4)
        raise ZeroDivisionError
    assert [(step.pieces, step.rows) for step in read_times(layout, REPORT)] == [(1, 3)]
    with replacing_times(layout, REPORT):
        work(layout, REPORT, "render", 5)
        work(layout, REPORT, "render", 6)
        assert [step.rows for step in read_times(layout, REPORT)] == [3]
    assert [(step.pieces, step.rows) for step in read_times(layout, REPORT)] == [(2, 11)]
