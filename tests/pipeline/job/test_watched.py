"""How a job that is watched ends, when all of it runs in this process."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from rich.console import Console

from pipeline.job.failures import JobFailed
from pipeline.job.runners import choose_runner
from pipeline.job.watched import run_watched
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage


def run(root: Path, step: Callable[[int], Any]) -> None:
    layout = DatasetLayout(str(root))
    Path(layout.run).mkdir()
    chosen = choose_runner("local", 1, (), layout)
    pipeline = beam.Pipeline(runner=chosen.runner, options=chosen.options)
    _ = pipeline | beam.Create([1]) | beam.Map(step)
    run_watched(pipeline, layout, (Stage.SCORE,), chosen.watch, Console(file=io.StringIO()))


def test_a_job_that_is_done_raises_nothing(tmp_path: Path) -> None:
    run(tmp_path, lambda number: (tmp_path / f"done-{number}").touch())
    assert (tmp_path / "done-1").exists()


@pytest.mark.parametrize("kind", [ConfigError, DatasetError])
def test_what_a_person_can_mend_ends_the_job_as_what_it_is(
    kind: type[Exception], tmp_path: Path
) -> None:
    def step(number: int) -> None:
        raise kind(f"mend row {number}")

    with pytest.raises(kind, match="mend row 1"):
        run(tmp_path, step)


def test_any_other_error_is_told_with_where_it_came_from(tmp_path: Path) -> None:
    def step(number: int) -> None:
        raise ZeroDivisionError(f"row {number}")

    with pytest.raises(JobFailed, match="row 1") as failed:
        run(tmp_path, step)
    assert failed.value.__cause__ is not None
