"""What a worker fetches with, shared by the shards that it fetches at once.

A process has one event loop for a configuration: one pool of connections, one set of decoders, one
memory of hosts, whichever shards and whichever of the runner's threads ask. So a host's limits
hold for the process, and a shard that only waits for its last slow hosts leaves the rest to others.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

from pipeline.config import FetchConfig
from pipeline.dataset.deny import DenyFiles, DenyLists, read_lists
from pipeline.dataset.progress import WorkAbandoned
from pipeline.fetch.decoding.pool import DecoderPool, StartTime
from pipeline.fetch.flow import Flow, FlowTime
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.queues import HostQueues
from pipeline.fetch.hosts.slots import HostSlots, Slot
from pipeline.fetch.http.download import Downloader
from pipeline.fetch.process_settings import connections_allowed

READS_AT_ONCE = 32
"""Images from files and tars that are in memory at once, not being bound by a host's limits."""

NOTHING_DENIED = DenyFiles()

Result = TypeVar("Result")

Row = Callable[[Slot | None, bool], Coroutine[Any, Any, "asyncio.Future[Any] | None"]]
"""Does one image's work, given a slot at its host and whether that is the last that waits for it.

It returns what is left to come of a decoder, for which nobody need wait who can ask a host
meanwhile. It keeps its errors to itself, but for being cancelled.
"""


class SharedTools:
    """Connections, decoders and queues within one event loop; close them when done."""

    def __init__(self, config: FetchConfig, memory: HostMemory, denied: DenyLists | None) -> None:
        self._config = config
        slots = HostSlots(memory, config)
        self._queues: HostQueues[Row] = HostQueues((), slots, is_open=True)
        self._workers: list[asyncio.Task[None]] = []
        self.reads = asyncio.Semaphore(READS_AT_ONCE)
        self.downloader = Downloader(config, memory, slots=slots, denied=denied)
        self.decoders = DecoderPool(
            config.images,
            config.decode_processes,
            config.decode_timeout_seconds,
        )
        self._room = asyncio.Semaphore(max(1, config.connections // 2))
        """For downloads that decoders have not answered: then who asks waits for them, too."""
        self.flow = Flow(config.connections)
        self.fault: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails if one who works does, which is nobody's image's fault."""

    def add(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Has rows done, each with its host, behind those that wait already."""
        self.decoders.expect(len(rows))  # first of all: they load their libraries meanwhile
        wanted = min(self._config.connections, len(self._workers) + len(rows))
        if wanted > len(self._workers):
            for _ in range(connections_allowed(wanted) - len(self._workers)):
                worker = asyncio.create_task(self._work())
                worker.add_done_callback(self._note_end)
                self._workers.append(worker)
        self._queues.add(rows)

    async def _work(self) -> None:
        while (taken := await self._queues.take()) is not None:
            slot, work, is_last_of_host = taken
            left = await work(slot, is_last_of_host)
            if left is None:
                self.flow.count()
            else:
                await self._room.acquire()
                left.add_done_callback(self._note_answer)

    def _note_answer(self, _: "asyncio.Future[Any]") -> None:
        self._room.release()
        self.flow.count()

    def pace(self) -> tuple[StartTime, FlowTime]:
        """Returns what starting took, and what the rows in the middle did, if all are done now."""
        # img2dataset has downloaded a shard before its first row is done; and where a shard is
        # worked on alone, each begins anew.
        flows = self._config.engine == "aligngpt" and self._config.shards_at_once > 1
        return self.decoders.start_time, self.flow.time() if flows else FlowTime()

    def _note_end(self, worker: asyncio.Task[None]) -> None:
        error = None if worker.cancelled() else worker.exception()
        if error is not None and not self.fault.done():
            self.fault.set_exception(error)

    async def close(self) -> None:
        """Ends what is at work, and closes all connections and decoders."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self.fault.cancel()
        await self.downloader.close()
        await self.decoders.close()


class _Loop:
    """An event loop in a thread of its own, with tools that are there while somebody uses them."""

    def __init__(self, config: FetchConfig, files: DenyFiles) -> None:
        self.sessions = 0
        self._denied = read_lists(files) if files else None
        self._config, self._memory = config, HostMemory(config)
        self._tools: SharedTools | None = None
        self._pace: tuple[StartTime, FlowTime] | None = None
        self._is_told = False
        self._users: set[asyncio.Task[Any] | None] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._has_begun = threading.Event()
        # A job that is told to end does not wait for it.
        self._thread = threading.Thread(target=self._serve, name="fetch", daemon=True)
        self._thread.start()
        self._has_begun.wait()

    def _serve(self) -> None:
        asyncio.run(self._wait_for_end())

    async def _wait_for_end(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        self._changing = asyncio.Lock()
        self._turns = asyncio.Semaphore(self._config.shards_at_once)
        self._has_begun.set()
        await self._is_over.wait()
        while at_work := {*filter(None, self._users), *self._leaving}:
            await asyncio.wait(at_work)

    def close(self) -> None:
        """Ends the loop, and what is left in it."""
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join()

    def begin(
        self, work: Callable[[SharedTools], Coroutine[Any, Any, Result]]
    ) -> "concurrent.futures.Future[Result]":
        """Returns what will come of a work that uses the tools."""
        return asyncio.run_coroutine_threadsafe(self._with_tools(work), self._loop)

    async def _with_tools(
        self, work: Callable[[SharedTools], Coroutine[Any, Any, Result]]
    ) -> Result:
        async with self._turns:  # a runner may give a process more shards, in several threads
            tools = await self._taken()
            task = asyncio.create_task(work(tools))
            watched: set[asyncio.Future[Any]] = {task, tools.fault}
            try:
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if not task.done():
                    await tools.fault
                return await task
            finally:
                leaving = asyncio.create_task(self._let_go(tools, task, asyncio.current_task()))
                self._leaving.add(leaving)
                leaving.add_done_callback(self._leaving.discard)
                # Who is told to end meanwhile does not end this: it would leave processes behind.
                await asyncio.shield(leaving)

    async def _taken(self) -> SharedTools:
        """Returns the tools, made now if nobody uses them yet."""
        async with self._changing:
            tools = self._tools = self._tools or SharedTools(
                self._config, self._memory, self._denied
            )
            self._users.add(asyncio.current_task())
            return tools

    def take_pace(self) -> tuple[StartTime, FlowTime]:
        """Returns what starting and the rows in the middle took, once all are done.

        Of the first time that all are, and only once; else of nothing.
        """
        if self._pace is None or self._is_told:
            return StartTime(), FlowTime()
        self._is_told = True
        return self._pace

    async def _let_go(
        self, tools: SharedTools, work: asyncio.Task[Any], user: asyncio.Task[Any] | None
    ) -> None:
        """Ends a work, and closes its tools if nobody else uses them."""
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        async with self._changing:
            self._users.discard(user)
            if not self._users:
                self._tools = None
                self._pace = self._pace or tools.pace()
                await tools.close()


_loops: dict[tuple[FetchConfig, DenyFiles], _Loop] = {}
_sharing = threading.Lock()


class FetchSession:
    """One user of this process's event loop for a configuration; close it when done.

    Several threads may use it, each for a shard.
    """

    def __init__(self, config: FetchConfig, denied: DenyFiles = NOTHING_DENIED) -> None:
        """Takes what it is for.

        Args:
            denied: lists of addresses that no redirect may lead to.
        """
        self._place = (config, denied)
        self._is_abandoned = self._is_closed = False
        self._running: set[concurrent.futures.Future[Any]] = set()
        self._lock = threading.Lock()
        with _sharing:
            self._loop = _loops.get(self._place) or _Loop(config, denied)
            self._loop.sessions += 1
            _loops[self._place] = self._loop

    def run(self, work: Callable[[SharedTools], Coroutine[Any, Any, Result]]) -> Result:
        """Returns what comes of a work that uses the shared tools.

        Raises:
            WorkAbandoned: if nobody wants it any more.
        """
        with self._lock:
            if self._is_abandoned:
                raise WorkAbandoned
            future = self._loop.begin(work)
            self._running.add(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise WorkAbandoned from None
        finally:
            future.cancel()
            with self._lock:
                self._running.discard(future)

    def take_pace(self) -> tuple[StartTime, FlowTime]:
        """Returns what starting and the rows in the middle took: once, at the end of all shards."""
        with _sharing:
            return self._loop.take_pace()

    def abandon(self) -> None:
        """Ends what runs, and whatever would begin: each raises `WorkAbandoned`."""
        with self._lock:
            self._is_abandoned = True
            running = list(self._running)
        for future in running:
            future.cancel()

    def close(self) -> None:
        """Lets go of the loop, which ends with its last user."""
        self.abandon()
        with _sharing:
            if self._is_closed:
                return
            self._is_closed = True
            self._loop.sessions -= 1
            if self._loop.sessions:
                return
            del _loops[self._place]
        self._loop.close()

    def __enter__(self) -> "FetchSession":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()
