"""What the workers of a test's job do. It imports little, for every worker imports it."""

import itertools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipeline.dataset.progress import ShardProgress
from schemas.shards import DatasetLayout
from schemas.stages import Stage

SHARDS = 6

_done_here: list[int] = []
"""The shards that this process has done."""


class Works(beam.DoFn):
    """Does a stage's work on a shard, and what a test wants to happen around it."""

    def __init__(self, layout: DatasetLayout, deeds: dict[str, Callable[[], Any]]) -> None:
        super().__init__()
        self._layout, self._deeds = layout, deeds

    def process(self, shard: int) -> list[int]:
        """Does a shard."""
        is_last = self._place() == SHARDS - 1
        self._do("between two" if _done_here else "before")
        with ShardProgress(self._layout, Stage.SCORE, shard, 10) as progress:
            if is_last:
                self._do("within the last")
            progress.update(10, 0)
        Path(self._layout.root, f"done-{shard}").touch()
        _done_here.append(shard)
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
        """Does what is to happen when the worker is told to end."""
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
        time.sleep(15)
