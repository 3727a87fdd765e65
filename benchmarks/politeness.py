"""What a host sees of many workers: requests at once and a second, on a clock that is reckoned.

    python benchmarks/politeness.py                  # 100 workers
    python benchmarks/politeness.py --workers 12
    python benchmarks/politeness.py --save           # benchmarks/results/politeness.json
    python benchmarks/politeness.py --quick          # does it run at all?

Each worker is the fetch stage's own code: its memory of hosts, its slots and queues, its reader of
robots.txt, its downloader. Only the network is made up: answers take the time that they are told
to, and the clock jumps to what comes next. Each host is asked by one worker, by workers of which
each keeps to the whole of the host's limits, and by workers that share them. Printed is what the
host sees in the beginning, when all workers ask it for the first time, and after that.
"""

import argparse
import asyncio
import contextlib
import random
import selectors
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from yarl import URL

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.queues import HostQueues
from pipeline.fetch.hosts.slots import HostSlots
from pipeline.fetch.http import download
from pipeline.fetch.http.client import HttpClient, Response
from schemas.errors import SampleRejected

TAKERS = 16
"""Downloads at once in a worker: more than one host gets."""


@dataclass(kw_only=True)
class Host:
    """A host, and what it saw."""

    name: str
    answer_seconds: float
    """In the median; a sixth of the answers take more than 1.6 times that."""
    crawl_delay: int = 0
    begin_seconds: float = 60.0
    """Until workers know the host."""
    seconds: float = 60.0
    """Looked at after that."""
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    active: int = 0
    most_at_first: int = 0
    most: int = 0
    requests: int = 0
    busy_seconds: float = 0.0

    def robots(self) -> str:
        """Returns its robots.txt."""
        return f"User-agent: *\nCrawl-delay: {self.crawl_delay}\n" if self.crawl_delay else ""

    async def answer(self) -> None:
        """Takes the time that an answer takes."""
        now = asyncio.get_running_loop().time
        began = now()
        self.active += 1
        if began < self.begin_seconds:
            self.most_at_first = max(self.most_at_first, self.active)
        else:
            self.most = max(self.most, self.active)
        try:
            await asyncio.sleep(self.answer_seconds * self.chance.lognormvariate(0.0, 0.5))
        finally:
            self.active -= 1
            if began >= self.begin_seconds:
                self.requests += 1
                self.busy_seconds += now() - began


class MadeUpClient(HttpClient):
    """Asks a host that is made up."""

    host: Host

    async def _ask(self, url: URL, *_: Any, **__: Any) -> Response:
        await self.host.answer()
        text = self.host.robots() if url.path == "/robots.txt" else ""
        return Response(bytearray(text, "utf-8"))


class _Jumping(selectors.DefaultSelector):
    """Never waits: the clock jumps instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Returns what is ready."""
        self.now += timeout or 0.0
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock is reckoned."""

    def __init__(self) -> None:
        self.clock = _Jumping()
        super().__init__(self.clock)

    def time(self) -> float:
        """Returns the seconds since it began."""
        return self.clock.now


@contextlib.contextmanager
def reckoned_clock() -> Iterator[_Loop]:
    """Gives an event loop whose clock is that of everybody."""
    loop = _Loop()
    with mock.patch("time.monotonic", loop.time), contextlib.closing(loop):
        yield loop


async def ask(host: Host, workers: int, config: FetchConfig) -> None:
    """Has a host asked by workers that have more to ask than there is time for."""
    seconds = host.begin_seconds + host.seconds
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(_work(config))


async def _work(config: FetchConfig) -> None:
    memory = HostMemory(config)
    slots = HostSlots(memory, config)
    downloader = download.Downloader(config, memory, slots=slots)
    origin = "https://host.test"
    queues: HostQueues[int] = HostQueues(((origin, row) for row in range(100_000)), slots)

    async def take() -> None:
        while (taken := await queues.take()) is not None:
            slot, row, is_last = taken
            with contextlib.suppress(SampleRejected):  # what took too long
                downloader.release(await downloader.download(f"{origin}/{row}", is_last, slot))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TAKERS):
                group.create_task(take())
    finally:
        await downloader.close()


def hosts() -> list[Host]:
    """Returns hosts that nobody has asked."""
    return [
        Host(name="answers in 0.3 s", answer_seconds=0.3, seconds=30.0),
        Host(name="answers in 3 s", answer_seconds=3.0, seconds=300.0),
        Host(
            name="crawl delay of 10 s",
            answer_seconds=0.3,
            crawl_delay=10,
            begin_seconds=1200.0,
            seconds=3600.0,
        ),
    ]


def seen(host: Host, workers: int, sharing: int) -> list[str]:
    """Returns what a host saw of workers: most at once, at first and then, mean, rate."""
    random.seed(0)
    with (
        reckoned_clock() as loop,
        mock.patch.object(MadeUpClient, "host", host, create=True),
        mock.patch.object(download, "HttpClient", MadeUpClient),
    ):
        loop.run_until_complete(ask(host, workers, FetchConfig(sharing_workers=sharing)))
    mean, rate = host.busy_seconds / host.seconds, host.requests / host.seconds
    return [str(host.most_at_first), str(host.most), rounded(mean, 2), rounded(rate, 3)]


def rounded(value: float, digits: int) -> str:
    """Returns a number to so many digits that count."""
    return f"{float(f'{value:.{digits}g}'):,.12g}"


def main() -> None:
    """Prints what hosts see of workers that do not share them, and of those that do."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="three workers")
    add_save_option(parser, "politeness")
    options = parser.parse_args()
    workers = 3 if options.quick else options.workers
    columns = ("host", "workers", "at once, most at first", "at once, most", "mean", "requests/s")
    rows = []
    for number in range(len(hosts())):
        for words, count, sharing in (
            ("1", 1, 1),
            (f"{workers}, each on its own", workers, 1),
            (f"{workers} that share", workers, workers),
        ):
            host = hosts()[number]
            rows.append([host.name, words, *seen(host, count, sharing)])
            print(", ".join(rows[-1]), flush=True)
    show_table(Table(columns, rows), options.save, workers=workers)


if __name__ == "__main__":
    main()
