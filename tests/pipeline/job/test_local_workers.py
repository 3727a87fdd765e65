"""Workers of a job that are slow to end, idle, or die at any moment of their work."""

import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from rich.console import Console

from pipeline.job.failures import JobFailed
from pipeline.job.log import logging_to_folder
from pipeline.job.runners import choose_runner
from pipeline.job.watched import run_watched
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.worker_deeds import SHARDS, Dawdles, Dies, Works

pytestmark = pytest.mark.slow


def run(root: Path, workers: int, shards: int = SHARDS, **deeds: Callable[[], Any]) -> None:
    layout = DatasetLayout(str(root))
    Path(layout.run).mkdir()
    chosen = choose_runner("local", workers, (), layout)
    named = {moment.replace("_", " "): deed for moment, deed in deeds.items()}
    pipeline = beam.Pipeline(runner=chosen.runner, options=chosen.options)
    _ = pipeline | beam.Create(range(shards)) | beam.Reshuffle() | beam.ParDo(Works(layout, named))
    try:
        with logging_to_folder(layout):
            run_watched(pipeline, layout, (Stage.SCORE,), chosen.watch, Console(file=io.StringIO()))
    finally:
        assert all(thread.name != "pipeline" for thread in threading.enumerate())


def test_workers_that_are_slow_to_end_end_with_the_job_and_are_not_lost(tmp_path):
    run(tmp_path, 4, at_the_end=Dawdles())
    assert len(list(tmp_path.glob("done-*"))) == SHARDS


def test_workers_that_have_nothing_to_do_are_not_waited_for(tmp_path):
    run(tmp_path, 16, shards=0)


@pytest.mark.parametrize(
    ("moment", "where"),
    [
        ("before", "no shard was in its hands"),
        ("between_two", "no shard was in its hands"),
        ("within_the_last", r"shard 0000\d in stage score \(0 of 10 pairs done"),
        ("after_the_last", "no shard was in its hands"),
    ],
)
def test_a_worker_killed_at_any_moment_of_its_work_ends_the_job(tmp_path, moment, where):
    with pytest.raises(JobFailed, match=rf"died hard \(process [\d, ]+\): {where}.* by SIGKILL"):
        run(tmp_path, 2, **{moment: Dies()})
