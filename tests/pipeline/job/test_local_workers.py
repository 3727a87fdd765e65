"""Workers of a job that are slow to end, idle, or die at any moment of their work."""

import io
import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from rich.console import Console

from pipeline.dataset.progress import ShardProgress
from pipeline.job.failures import JobFailed
from pipeline.job.log import logging_to_folder
from pipeline.job.run import run_watched
from pipeline.job.runners import choose_runner
from schemas.shards import DatasetLayout
from schemas.stages import Stage

SHARDS = 6

pytestmark = pytest.mark.slow


class Works(beam.DoFn):
    """Does a stage's work on a shard, and what a test wants to happen before, in or after it."""

    def __init__(self, layout: DatasetLayout, deeds: dict[str, Callable[[], Any]]) -> None:
        super().__init__()
        self._layout, self._deeds = layout, deeds

    def process(self, shard: int) -> list[int]:
        is_last = self._place() == SHARDS - 1
        self._do("before")
        with ShardProgress(self._layout, Stage.SCORE, shard, 10) as progress:
            if is_last:
                self._do("within the last")
            progress.update(10, 0)
        Path(self._layout.root, f"done-{shard}").touch()
        if is_last:
            self._do("after the last")
        return [shard]

    def _place(self) -> int:
        """Returns how many shards were begun before this one; each place is given once."""
        for place in itertools.count():
            with suppress(FileExistsError):
                Path(self._layout.root, f"begun-{place}").touch(exist_ok=False)
                return place
        raise AssertionError

    def teardown(self) -> None:
        self._do("at the end")

    def _do(self, moment: str) -> None:
        if moment in self._deeds:
            self._deeds[moment]()


class Dies:
    """A death of the process, at once."""

    def __init__(self, signal: int = 9) -> None:
        self._signal = signal

    def __call__(self) -> None:
        os.kill(os.getpid(), self._signal)


class Dawdles:
    """A while in which nothing happens, longer than a job waits for those that are done."""

    def __call__(self) -> None:
        time.sleep(60)


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
    run(tmp_path, 2, at_the_end=Dawdles())
    assert len(list(tmp_path.glob("done-*"))) == SHARDS


def test_workers_that_have_nothing_to_do_are_not_waited_for(tmp_path):
    run(tmp_path, 4, shards=0)


@pytest.mark.parametrize(
    ("moment", "where"),
    [
        ("before", "no shard was in its hands"),
        ("within_the_last", r"shard 0000\d in stage score \(0 of 10 pairs done"),
        ("after_the_last", "no shard was in its hands"),
    ],
)
def test_a_worker_killed_at_any_moment_of_its_work_ends_the_job(tmp_path, moment, where):
    with pytest.raises(JobFailed, match=rf"died hard \(process [\d, ]+\): {where}.* by SIGKILL"):
        run(tmp_path, 2, **{moment: Dies()})
