"""A step's input is cut into parts, which workers take from a queue: who is done takes another.

Beam's portable runner gives each worker its share beforehand, and all wait for the slowest. Parts
that are small throughout would cost: of each, a worker waits for its last slow host. So they begin
large and get smaller, as in guided self-scheduling: near the end all are of a few elements.

Source: C. Polychronopoulos and D. Kuck, Guided Self-Scheduling, IEEE Transactions on Computers,
1987.
"""

import copy
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from apache_beam.metrics import monitoring_infos
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import (
    BundleManager,
    FnApiRunner,
    ParallelBundleManager,
)
from apache_beam.utils import thread_pool_executor

from pipeline.dataset.commits import AT_ONCE
from pipeline.job.watch import Worker

PIECES_PER_WORKER = 64
"""Pieces that a step's input is cut into for each worker; the last parts are of one piece."""

SHARE_OF_REST = 2
"""A part is the rest of the input, divided by the workers and by this."""

LOOK_SECONDS = 0.05
"""Between two looks at whether a worker has come to work."""


class Handler(Protocol):
    """The runner's side of one worker."""

    def is_there(self) -> bool:
        """Returns whether there is a worker at all."""

    def has_come(self) -> bool:
        """Returns whether the worker has come to work; raises if it never will."""


def has_come_to_work(worker: Worker) -> bool:
    """Returns whether a worker has come to work.

    Raises:
        RuntimeError: if it is gone, so that it never will.
    """
    if worker.was_ended or worker.process.poll() is not None:
        raise RuntimeError("the worker is gone")
    return worker.line.has_joined()


def queued_bundles(manager: Any, progress_frequency: float | None) -> "QueuedBundles":
    """Returns what divides a step's input among the workers of Beam's manager of its bundles."""
    manager._worker_handlers = [one for one in manager.worker_handlers if one.is_there()]
    tokens = FnApiRunner.get_cache_token_generator(static=False)
    return QueuedBundles(manager, progress_frequency, cache_token_generator=tokens)


class QueuedBundles(ParallelBundleManager):
    """Cuts a step's input into parts, which workers take from a queue.

    A worker that is done takes the next part, and one that has not come to work takes none.
    """

    def process_bundle(
        self,
        inputs: Mapping[str, Any],
        expected_outputs: Any,
        fired_timers: Mapping[Any, Any],
        expected_output_timers: Any,
        dry_run: bool = False,
    ) -> Any:
        """Returns the merged results of all parts, and how they were split."""
        handlers = self.bundle_context_manager.worker_handlers
        stage = self.bundle_context_manager.stage
        # Keys of a step with state are not to be apart: one worker does all of it.
        workers = 1 if stage.is_stateful() else len(handlers)
        parts = list(parts_of(inputs, workers, at_once_of(stage)))
        waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        for number_and_part in enumerate(parts):
            waiting.put(number_and_part)
        results: dict[int, Any] = {}
        left = _Countdown(len(parts))

        def work(handler: Handler) -> None:
            context = copy.copy(self.bundle_context_manager)
            context._worker_handlers, context.num_workers = [handler], 1
            while left.wait_until(handler.has_come):
                try:
                    number, part = waiting.get_nowait()
                except queue.Empty:
                    return
                bundles = BundleManager(
                    context,
                    self._progress_frequency,
                    cache_token_generator=self._cache_token_generator,
                )
                timers = fired_timers if number == 0 else {}
                with left.counting():
                    results[number] = bundles.process_bundle(
                        part, expected_outputs, timers, expected_output_timers, dry_run
                    )

        with thread_pool_executor.shared_unbounded_instance() as executor:
            for _ in executor.map(work, handlers):
                pass
        return _merged([results[number] for number in sorted(results)])


class _Countdown:
    """How many parts of a step are not done yet, and whether one failed."""

    def __init__(self, count: int) -> None:
        self._lock, self._left, self._has_failed = threading.Lock(), count, False

    def wait_until(self, is_true: Callable[[], bool]) -> bool:
        """Returns True once something is; False if all parts are done, or one failed, before."""
        while not self._has_failed and self._left:
            if is_true():
                return True
            time.sleep(LOOK_SECONDS)
        return False

    def counting(self) -> "_Countdown":
        """Returns what counts a part as done at the end of a block."""
        return self

    def __enter__(self) -> None:
        """Begins a part."""

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        """Ends a part, well or not."""
        with self._lock:
            self._left -= 1
            self._has_failed = self._has_failed or kind is not None


def at_once_of(stage: Any) -> int:
    """Returns how many elements a worker takes on at the same time in a stage of Beam's."""
    told = (transform.annotations.get(AT_ONCE) for transform in stage.transforms)
    return max((int(count) for count in told if count), default=1)


def parts_of(inputs: Mapping[str, Any], workers: int, at_once: int = 1) -> Iterator[dict[str, Any]]:
    """Yields parts of a step's inputs, the largest first; a single empty one if nothing is in it.

    Args:
        inputs: by name, a buffer of Beam's that can be cut into pieces; of one worker, all is one
            part.
        at_once: elements that a worker takes on at the same time.
    """
    count = 1 if workers == 1 else workers * PIECES_PER_WORKER
    cut = {name: buffer.partition(count) for name, buffer in inputs.items()}
    pieces = [{name: found[at] for name, found in cut.items()} for at in range(count)]
    filled = [piece for piece in pieces if any(any(part) for part in piece.values())]
    left = iter(filled or pieces[:1])
    for size in part_sizes(max(1, len(filled)), workers, at_once):
        part = list(itertools.islice(left, size))
        yield {name: [*itertools.chain(*(piece[name] for piece in part))] for name in inputs}


def part_sizes(pieces: int, workers: int, at_once: int = 1) -> Iterator[int]:
    """Yields of how many pieces each part is.

    Args:
        at_once: pieces that a part has at least, while there are as many for each worker.
    """
    while pieces:
        share = -(-pieces // workers)
        floor = share if workers == 1 else min(at_once, share)
        size = max(1, pieces // (SHARE_OF_REST * workers), floor)
        yield size
        pieces -= size


def _merged(results: list[tuple[Any, list[Any]]]) -> tuple[Any, list[Any]]:
    """Returns the results of all parts as one, what is left to do of each among them."""
    if len(results) == 1:
        return results[0]
    done = [one.process_bundle for one, _ in results]
    merged = beam_fn_api_pb2.ProcessBundleResponse(
        monitoring_infos=monitoring_infos.consolidate(
            itertools.chain(*(one.monitoring_infos for one in done))
        ),
        residual_roots=itertools.chain(*(one.residual_roots for one in done)),
    )
    splits = [split for _, found in results for split in found]
    return beam_fn_api_pb2.InstructionResponse(process_bundle=merged), splits
