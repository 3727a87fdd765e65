import shutil

import pytest

from pipeline.cli import run
from pipeline.plan.run import (
    format_bytes,
    format_count,
    format_dollars,
    format_hours,
    format_length,
)


def plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Returns what a plan says, as one line."""
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["plan", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_plan_says_what_each_stage_takes_and_what_it_is_reckoned_from(
    curated, capsys, monkeypatch
):
    said = plan(capsys, monkeypatch, "--pairs", "1e9", "--workers", "64", "--from", str(curated[0]))
    assert "1,000,000,000 pairs, 64 workers" in said
    for stage in (*curated[1].stages, "report"):
        assert f" {stage} " in said
    assert f"Reckoned from {curated[0]}, {curated[1].rows_in} pairs" in said
    assert "times the run" in said
    assert "Gbit a second" in said
    assert "assumed" not in said


def test_without_a_dataset_the_run_that_comes_with_the_program_is_taken(capsys, monkeypatch):
    said = plan(capsys, monkeypatch, "--pairs", "1e6", "--workers", "8", "--gpus", "2")
    assert "1,000,000 pairs, 8 workers, 2 GPUs" in said
    assert "Reckoned from benchmarks/plan.py" in said
    assert "2,286 pairs a second for each GPU are assumed" in said
    given = ("--gpu-pairs-per-second", "500", "--gpus", "2")
    assert "assumed" not in plan(capsys, monkeypatch, "--pairs", "1e6", *given)


def test_what_cannot_be_planned_is_refused_with_what_to_do(curated, capsys, tmp_path):
    shutil.copytree(curated[0], tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "_run" / "times")
    for words, reason in (
        (["--pairs", "0.5"], "--pairs must be a whole number from 1 on"),
        (["--pairs", "nan"], "--pairs must be a whole number"),
        (["--pairs", "inf"], "--pairs must be a whole number"),
        (["--pairs", "9", "--workers", "0"], "at least one worker"),
        (["--pairs", "9", "--price-gpu-hour", "-1"], "--price-gpu-hour must be dollars"),
        (["--pairs", "9", "--gpu-pairs-per-second", "0"], "must be positive"),
        (["--pairs", "9", "--from", str(tmp_path / "old")], "does not say how long"),
        (["--pairs", "9", "--from", str(tmp_path / "none")], str(tmp_path / "none")),
    ):
        assert run(["plan", *words]) == 2
        assert reason in " ".join(capsys.readouterr().err.split())


def test_lengths_sizes_and_sums_are_said_in_units_that_people_read():
    lengths = [format_length(seconds) for seconds in (65.4, 2040, 121_000, 86_400 * 3.5)]
    assert lengths == ["65 s", "34 min", "33.6 h", "3.5 days"]
    counts = [format_count(count) for count in (999_999, 1_234_567, 56_789_000, 10**9, 5 * 10**10)]
    assert counts == ["999,999", "1.23 M", "56.8 M", "1.00 bn", "50.0 bn"]
    assert [format_hours(seconds) for seconds in (0, 36, 3600 * 1234)] == ["", "0.01", "1,234"]
    assert [format_bytes(count) for count in (0, 999, 999_999, 2.5e15)] == [
        "",
        "999 bytes",
        "1.0 MB",
        "2.5 PB",
    ]
    assert [format_dollars(dollars) for dollars in (0.126, 1234.5)] == ["0.13", "1,234"]
