"""When a job whose workers were lost begins again by itself, and when it gives up."""

from collections import Counter

from pipeline.dataset.finished import finished_shards
from pipeline.dataset.progress import ProgressReader, ShardState
from pipeline.job.failures import JobFailed, WorkersLost, place_of
from schemas.errors import StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import is_local

FATAL_DEATHS = 3
"""Workers that a shard takes with it before it, and not the machines, is to blame."""


class Attempts:
    """Counts the attempts of a job that get no further, and the workers that each shard costs."""

    def __init__(self, layout: DatasetLayout, limit: int) -> None:
        """Begins to count.

        Args:
            limit: attempts in a row, each no further than the one before, after which to give up.
        """
        self._layout, self._limit = layout, limit
        self._in_vain = 0
        self._done = self._count_done()
        self._deaths: Counter[tuple[Stage, int]] = Counter()

    def next_after(self, failure: WorkersLost | StorageError) -> str:
        """Returns what to say before the job begins again after a failure.

        Raises:
            JobFailed: if a shard keeps killing its worker.
            WorkersLost: the failure itself, if the job got no further too many times.
            StorageError: likewise, or if it is a disk's: it is as full the next time.
        """
        if isinstance(failure, StorageError) and is_local(self._layout.root):
            raise failure
        if isinstance(failure, WorkersLost):
            self._blame(failure)
        done = self._count_done()
        self._in_vain = 1 if done > self._done else self._in_vain + 1
        self._done = done
        if self._in_vain >= self._limit:
            raise failure
        return f"Going on from what is committed, after this: {failure}"

    def _blame(self, failure: WorkersLost) -> None:
        """Counts a worker that died alone over a shard: where several go, a machine went."""
        if failure.machines_lost or len(failure.at_work) > 1:
            return
        self._deaths.update((state.stage, state.shard) for state in failure.at_work)
        fatal = [one for one in failure.at_work if self._deaths_of(one) >= FATAL_DEATHS]
        if fatal:
            raise JobFailed(
                f"{FATAL_DEATHS} workers died over {place_of(fatal[0])}: it takes more memory than "
                f"a worker has, or brings the worker down. {failure}"
            )

    def _deaths_of(self, state: ShardState) -> int:
        return self._deaths[state.stage, state.shard]

    def _count_done(self) -> int:
        """Returns how much is done: shards of all stages, and pieces of their steps."""
        reader = ProgressReader(self._layout)
        # Of a very large dataset, what is known of each shard would take hundreds of megabytes.
        done = set(finished_shards(self._layout))
        for _, state in reader.read_files():
            change = done.add if state.state == "done" else done.discard
            change((state.stage.value, state.shard))
        return len(done) + sum(step.done for step in reader.read_steps())
