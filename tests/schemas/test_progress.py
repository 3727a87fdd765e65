"""Long work says how far it is, where no terminal is, too."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas.progress import PACE_SECONDS, Pace, RunProgress, at_work, shown


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines come at once instead of every few seconds."""
    monkeypatch.setattr("schemas.progress.SAY_EVERY_SECONDS", 0.01)


def pace(steps: list[float], total: int = 70, done: int = 0, unit: str = "step") -> Pace:
    """Returns the pace of work that began at 0, its steps done at these times."""
    made = Pace("training", total, done, unit, 0.0)
    for now in steps:
        made.advance("loss 4.125", now)
    return made


def test_a_line_says_done_of_total_rate_loss_and_time_left() -> None:
    assert pace([4.0, 8.0, 12.0]).words(13.0) == (
        "training: 3 of 70 steps, 4.0 s a step, loss 4.125, 4 min 28 s left"
    )


def test_quick_work_is_told_by_its_number_a_second() -> None:
    words = pace([0.5, 1.0, 1.5, 2.0], total=1004, unit="batch").words(2.0)
    assert words == "training: 4 of 1,004 batches, 2.0 batches/s, loss 4.125, 8 min 20 s left"


def test_before_the_first_step_nothing_is_guessed() -> None:
    assert pace([]).words(10.0) == "training: 0 of 70 steps"
    assert pace([], done=30).words(154.0) == (
        "training: 30 of 70 steps, at this step for 2 min 34 s"
    )


def test_a_run_that_goes_on_counts_its_own_steps_for_the_rate() -> None:
    assert pace([5.0, 10.0], done=60).words(10.0).endswith("5.0 s a step, loss 4.125, 40 s left")


def test_the_time_left_follows_the_last_while() -> None:
    slow_then_quick = [10.0 * step for step in range(1, 11)]
    slow_then_quick += [100.0 + step for step in range(1, int(PACE_SECONDS) + 2)]
    words = pace(slow_then_quick, total=1000).words(slow_then_quick[-1])
    assert "1.0 steps/s" in words or "1.0 s a step" in words


def test_slow_steps_are_told_from_the_last_ones() -> None:
    assert ", 154.0 s a step," in pace([154.0 * step for step in range(1, 6)]).words(770.0)


def test_many_quick_steps_are_not_all_remembered() -> None:
    made = pace([step / 1000 for step in range(1, 5001)], total=10_000)
    assert len(made._history) < 10
    assert "1,000.0 steps/s" in made.words(5.0)


def test_without_a_terminal_lines_come_while_one_step_goes_on(
    often: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunProgress("training", 3, 1, is_active=True) as progress:
        progress.advance("loss 2.000")
        said = wait_for_line(capfd)
    assert "training: 2 of 3 steps, " in said and "loss 2.000" in said
    assert "training: 2 of 3 steps, loss 2.000, in 0 s" in capfd.readouterr().err


def wait_for_line(capfd: pytest.CaptureFixture[str]) -> str:
    """Returns what was said, once something was."""
    said = ""
    while "\n" not in said:
        threading.Event().wait(0.01)
        said += capfd.readouterr().err
    return said


def test_other_processes_than_the_first_are_silent(
    often: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with at_work("loading"):
        assert list(shown("validating", range(3), 3, unit="batch")) == [0, 1, 2]
        threading.Event().wait(0.05)
    assert capfd.readouterr().err == ""


def test_of_work_within_work_the_inner_speaks(
    often: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with RunProgress("training", 3, 0, is_active=True):
        with at_work("saving a checkpoint"):
            wait_for_line(capfd)
            inner = wait_for_line(capfd)
        outer = wait_for_line(capfd) + wait_for_line(capfd)
    assert inner.startswith("saving a checkpoint: 0 s so far")
    assert "training: 0 of 3 steps" in outer


def test_what_is_written_is_counted(
    often: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(1_500_000_000)
    with at_work("exporting m", into=tmp_path, num_bytes=3_000_000_000):
        assert wait_for_line(capfd).startswith("exporting m: 1.5 of 3.0 GB written, 0 s so far")


def test_items_pass_unchanged_and_an_end_before_their_time_is_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken() -> Iterator[int]:
        yield from range(2)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        list(shown("tokenising", broken(), 5, is_active=True, unit="sample"))
    assert "tokenising: 2 of 5 samples, in 0 s" in capfd.readouterr().err
