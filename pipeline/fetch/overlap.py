"""Several shards at once in one worker: each in a thread, committed when it is whole."""

import queue
import threading
from collections.abc import Callable


class ShardsAtOnce:
    """Works on up to so many shards at once; the first error ends them all.

    The threads only wait and commit; what they wait for is shared (`pipeline.fetch.sharing`).
    """

    def __init__(
        self, work: Callable[[int], None], at_once: int, abandon: Callable[[], None]
    ) -> None:
        """Takes what is to be done.

        Args:
            work: does a shard.
            abandon: makes all work that is under way end soon.
        """
        self._work, self._at_once, self._abandon = work, at_once, abandon
        self._threads: dict[int, threading.Thread] = {}
        self._ended: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()

    def add(self, shard: int) -> list[int]:
        """Begins a shard as soon as there is room; returns those that are done by then.

        Raises whatever ended the work on another shard.
        """
        done = self._collect(self._at_once - 1)
        # A job that is told to end does not wait for it.
        thread = threading.Thread(
            target=self._run, args=(shard,), name=f"shard-{shard:05d}", daemon=True
        )
        self._threads[shard] = thread
        thread.start()
        return done

    def finish(self) -> list[int]:
        """Returns the shards that were under way, once they are done.

        Raises whatever ended the work on one of them.
        """
        return self._collect(0)

    def stop(self) -> None:
        """Ends the work on all shards, and returns when nobody works any more."""
        self._abandon()
        for thread in self._threads.values():
            thread.join()
        self._threads.clear()

    def _run(self, shard: int) -> None:
        try:
            self._work(shard)
        except BaseException as error:  # noqa: BLE001 - raised again by who collects
            self._ended.put((shard, error))
        else:
            self._ended.put((shard, None))

    def _collect(self, left: int) -> list[int]:
        """Returns shards that are done, as soon as no more than so many are under way."""
        done = []
        while len(self._threads) > left or (self._threads and not self._ended.empty()):
            shard, error = self._ended.get()
            self._threads.pop(shard).join()
            if error is not None:
                self.stop()
                raise error
            done.append(shard)
        return done
