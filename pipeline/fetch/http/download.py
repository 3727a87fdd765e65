"""One image over HTTP: guarded, polite, within its limits of bytes, time and redirects."""

import asyncio
import random
import time
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.dataset.deny import DenyLists
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.slots import HostSlots, Slot, no_slot
from pipeline.fetch.http.budgets import paused
from pipeline.fetch.http.client import HttpClient, Response
from pipeline.fetch.http.rules import RuleKeeper
from pipeline.fetch.http.urls import parse_url
from schemas.errors import RejectReason, SampleRejected

BACKOFF_SECONDS = 0.25
REQUEST_RATIO = 0.1
"""Share of an image's time that waiting for others to end leaves to the request itself."""

PASSING = frozenset(
    {
        RejectReason.CONNECT_FAILED,
        RejectReason.INCOMPLETE_RESPONSE,
        RejectReason.SERVER_ERROR,
        RejectReason.RATE_LIMITED,
    }
)
"""Failures after which the same request may succeed at once or after a short wait."""

SILENT = frozenset({RejectReason.CONNECT_FAILED, RejectReason.DNS_FAILED, RejectReason.TIMED_OUT})
"""Failures that say that a host does not answer."""


@dataclass(slots=True)
class _Request:
    """The way to one image, over redirects and retries."""

    deadline: asyncio.Timeout
    slot: Slot
    asked: str
    """The host that the image is at."""
    is_waiting: bool = False
    """Whether for a slot at that host, which then has done nothing wrong."""


class Downloader:
    """Downloads images within one event loop; close it when done."""

    def __init__(
        self,
        config: FetchConfig,
        memory: HostMemory,
        resolver: AbstractResolver | None = None,
        slots: HostSlots | None = None,
        denied: DenyLists | None = None,
    ) -> None:
        self._config, self._memory = config, memory
        self._client = HttpClient(config, memory, resolver, denied)
        self._rules = RuleKeeper(config, memory, self._client)
        self._slots = slots or HostSlots(memory, config)
        self._first: dict[str, asyncio.Event] = {}
        """URLs that are asked now: who wants one as well waits to see whether it opts out."""

    async def close(self) -> None:
        """Closes all connections."""
        await self._rules.close()
        await self._client.close()

    def release(self, body: bytearray) -> None:
        """Takes note that a downloaded body is no longer held in memory."""
        self._client.release(body)

    async def download(
        self, asked: URL | str, is_last_of_host: bool = False, slot: Slot | None = None
    ) -> bytearray:
        """Returns the bytes that a URL leads to; `release` them once they are done with.

        Args:
            asked: a URL as `parse_url` returns it, or its text.
            is_last_of_host: whether its connection need not be kept for more.
            slot: at the URL's host; ended here. Without one, it waits for one.

        Raises:
            SampleRejected: whatever is in the way.
        """
        try:
            url = parse_url(asked) if isinstance(asked, str) else asked
            return await self._download(url, is_last_of_host, slot)
        finally:
            if slot is not None:
                slot.end()

    async def _download(self, url: URL, is_last_of_host: bool, slot: Slot | None) -> bytearray:
        self._client.check_url(url)
        origin = str(url.origin())
        self._memory.require_available(origin)
        slot = slot or await self._slots.wait(origin, self._config.timeout_seconds)
        try:
            async with asyncio.timeout(self._config.timeout_seconds) as deadline:
                request = _Request(deadline, slot, origin)
                body = await self._follow(url, request, is_last_of_host)
        except TimeoutError:
            if request.is_waiting:
                raise no_slot(request.asked) from None
            self._memory.failed(request.asked)
            detail = f"not done after {self._config.timeout_seconds:g} s"
            raise SampleRejected(RejectReason.TIMED_OUT, detail) from None
        except SampleRejected as rejected:
            if rejected.reason in SILENT:
                self._memory.failed(request.asked)
            elif not request.is_waiting:
                self._memory.succeeded(request.asked)
            raise
        finally:
            slot.end()
        self._memory.succeeded(request.asked)
        return body

    async def _follow(self, url: URL, request: _Request, is_last: bool) -> bytearray:
        """Returns the body behind a URL and its redirects."""
        start = request.asked

        async def ask(url: URL, hop: int) -> Response:
            if hop:
                self._memory.succeeded(request.asked)
                origin = str(url.origin())
                if origin != start:
                    self._memory.require_available(origin)
                request.asked = origin
            await self._begin(url, request, is_first=hop == 0)
            return await self._ask_once(url, request, is_last or request.asked != start)

        return await self._client.follow(url, ask)

    async def _begin(self, url: URL, request: _Request, is_first: bool) -> None:
        """Waits until the URL may be asked, by its host's rules and in a slot there.

        A host is asked for its rules in the slot of who needs them; what they say of its pace then
        holds for that one too.
        """
        if self._rules.are_known(request.asked):
            await self._rules.check(url, request.asked)
            if not is_first:
                await self._move(request)
            return
        if not is_first:
            await self._move(request)
        try:
            await self._rules.check(url, request.asked)
            await self._move(request)
        finally:
            self._slots.offer(request.asked)

    async def _ask_once(self, url: URL, request: _Request, is_last: bool) -> Response:
        """Returns the answer to a request, which is not made if the page is known to opt out."""
        text = str(url)
        first = self._first.get(text)
        if first is not None:
            with paused(request.deadline):  # bounded by the time of who was first
                await first.wait()
            self._memory.require_not_opted_out(text)
            return await self._try(url, request, is_last)
        self._memory.require_not_opted_out(text)
        first = self._first[text] = asyncio.Event()
        try:
            return await self._try(url, request, is_last)
        finally:
            del self._first[text]
            first.set()

    async def _move(self, request: _Request) -> None:
        """Waits until the host may be asked."""
        request.is_waiting = True
        await request.slot.move(request.asked, self._seconds_to_wait(request), request.deadline)
        request.is_waiting = False

    def _seconds_to_wait(self, request: _Request) -> float:
        """Returns how long an image may wait so that there is time left for a request."""
        left = (request.deadline.when() or 0.0) - asyncio.get_running_loop().time()
        return left - REQUEST_RATIO * self._config.timeout_seconds

    async def _try(self, url: URL, request: _Request, is_last: bool) -> Response:
        """Returns the answer to a request, asked again as long as that can help and time is."""
        for attempt in range(self._config.retries + 1):
            try:
                return await self._client.ask_image(url, request.asked, is_last, request.deadline)
            except SampleRejected as rejected:
                if rejected.reason not in PASSING or attempt == self._config.retries:
                    raise
                wait = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
                wait = max(wait, self._memory.host(request.asked).paused_until - time.monotonic())
                if wait >= self._seconds_to_wait(request):
                    raise
                failed = SampleRejected(*rejected.args)  # without what it holds in memory
            await asyncio.sleep(wait)
            try:
                await request.slot.move(request.asked, 0.0, request.deadline)
            except SampleRejected:
                raise failed from None
        raise AssertionError("the loop returns or raises")
