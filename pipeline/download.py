"""One image over HTTP: guarded, polite, within its limits of bytes, time and redirects."""

import asyncio
import functools
import random
import ssl
import time
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pipeline.address_guard import AddressGuard, parse_url
from pipeline.config import FetchConfig
from pipeline.host_turns import HostTurns, Turn, no_turn
from pipeline.memory_budget import ByteBudget
from pipeline.politeness import (
    MISSING_RULES_SECONDS,
    RULES_SECONDS,
    HostMemory,
    HostRules,
    agent_token,
    check_headers,
    crawl_delay_seconds,
    parse_robots,
    parse_tdmrep,
    retry_after_seconds,
)
from pipeline.resolver import CachedResolver
from pipeline.responses import PASSING_STATUS, Unpacker, failure, redirected, too_many
from schemas.errors import RejectReason, SampleRejected
from scoring.images import SNIFFED_BYTES, require_image

MAX_RULES_BYTES = 500 * 1024
"""Bytes of robots.txt that are read. Source: RFC 9309, section 2.5."""

FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What the client raises when a request fails."""

CHUNK_BYTES = 64 * 1024
BACKOFF_SECONDS = 0.25
REQUEST_RATIO = 0.1
"""Share of an image's time that waiting for others to end leaves to the request itself."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})

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

UNANSWERED_RULES = frozenset(
    {
        RejectReason.SERVER_ERROR,
        RejectReason.RATE_LIMITED,
        RejectReason.TIMED_OUT,
        RejectReason.INCOMPLETE_RESPONSE,
        RejectReason.BAD_RESPONSE,
    }
)
"""Failures that leave open what robots.txt says: nothing is asked then (RFC 9309, 2.3.1.4)."""

NO_RULES = frozenset(
    {RejectReason.HTTP_STATUS, RejectReason.BAD_REDIRECT, RejectReason.TOO_MANY_BYTES}
)
"""Failures that mean that there is no robots.txt: then everything may be asked (2.3.1.3)."""


@dataclass(slots=True)
class _Answer:
    """What one request brought: a body, or where to go on."""

    body: bytearray
    location: str | None = None


@dataclass(slots=True)
class _Trip:
    """The way to one image, over redirects and retries."""

    deadline: asyncio.Timeout
    turn: Turn
    asked: str
    """The host that the image is at."""
    is_waiting: bool = False
    """Whether for a turn at that host, which then has done nothing wrong."""


class Downloader:
    """Downloads images within one event loop; close it when done."""

    def __init__(
        self,
        config: FetchConfig,
        memory: HostMemory,
        resolver: AbstractResolver | None = None,
        turns: HostTurns | None = None,
    ) -> None:
        self._config, self._memory = config, memory
        self._guard = AddressGuard(config.allow_networks, config.allow_ports)
        self._budget = ByteBudget(config.max_buffered_bytes)
        self._agent = agent_token(config.user_agent)
        self._pending: dict[str, asyncio.Task[HostRules]] = {}
        self._turns = turns or HostTurns(memory, config)
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=resolver or CachedResolver(),
            use_dns_cache=False,
            socket_factory=self._guard.open_socket,
            happy_eyeballs_delay=None,
            ssl=tls_context(config.ca_file),
            keepalive_timeout=10.0,
        )
        contact = f" (+{config.contact})" if config.contact else ""
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_seconds),
            headers={
                "User-Agent": config.user_agent + contact,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            trust_env=False,
            read_bufsize=2 * CHUNK_BYTES,
        )

    async def close(self) -> None:
        """Closes all connections."""
        for task in list(self._pending.values()):
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._session.close()

    def release(self, body: bytearray) -> None:
        """Takes note that a downloaded body is no longer held in memory."""
        self._budget.release(len(body))

    async def download(
        self, text: str, is_last_of_host: bool = False, turn: Turn | None = None
    ) -> bytearray:
        """Returns the bytes that a URL leads to; `release` them once they are done with.

        Args:
            is_last_of_host: whether its connection need not be kept for more.
            turn: at the URL's host; ended here. Without one, it waits for its turn.

        Raises:
            SampleRejected: whatever is in the way.
        """
        try:
            return await self._download(text, is_last_of_host, turn)
        finally:
            if turn is not None:
                turn.end()

    async def _download(self, text: str, is_last_of_host: bool, turn: Turn | None) -> bytearray:
        url = parse_url(text)
        self._guard.check_url(url)
        origin = str(url.origin())
        self._memory.require_available(origin)
        turn = turn or await self._turns.wait(origin, self._config.timeout_seconds)
        try:
            async with asyncio.timeout(self._config.timeout_seconds) as deadline:
                trip = _Trip(deadline, turn, origin)
                body = await self._follow(url, trip, is_last_of_host)
        except TimeoutError:
            if trip.is_waiting:
                raise no_turn(trip.asked) from None
            self._memory.failed(trip.asked)
            detail = f"not done after {self._config.timeout_seconds:g} s"
            raise SampleRejected(RejectReason.TIMED_OUT, detail) from None
        except SampleRejected as rejected:
            if rejected.reason in SILENT:
                self._memory.failed(trip.asked)
            elif not trip.is_waiting:
                self._memory.succeeded(trip.asked)
            raise
        finally:
            turn.end()
        self._memory.succeeded(trip.asked)
        return body

    async def _follow(self, url: URL, trip: _Trip, is_last: bool) -> bytearray:
        """Returns the body behind a URL and its redirects."""
        start = str(url.origin())
        for hop in range(self._config.max_redirects + 1):
            self._guard.check_url(url)
            origin = str(url.origin())
            if origin != start:
                self._memory.require_available(origin)
            trip.asked = origin
            await self._check_rules(url, origin)
            if hop > 0:
                await self._move(trip)
            answer = await self._try(url, trip, is_last or origin != start)
            if answer.location is None:
                return answer.body
            self._memory.succeeded(origin)
            url = redirected(url, answer.location)
        detail = f"more than {self._config.max_redirects} redirects"
        raise SampleRejected(RejectReason.BAD_REDIRECT, detail)

    async def _move(self, trip: _Trip) -> None:
        """Returns when the host may be asked."""
        trip.is_waiting = True
        await trip.turn.move(trip.asked, self._seconds_to_wait(trip), trip.deadline)
        trip.is_waiting = False

    def _seconds_to_wait(self, trip: _Trip) -> float:
        """Returns how long an image may wait so that there is time left for a request."""
        left = (trip.deadline.when() or 0.0) - asyncio.get_running_loop().time()
        return left - REQUEST_RATIO * self._config.timeout_seconds

    async def _try(self, url: URL, trip: _Trip, is_last: bool) -> _Answer:
        """Returns the answer to a request, asked again as long as that can help and time is."""
        origin = str(url.origin())
        for attempt in range(self._config.retries + 1):
            try:
                return await self._ask(url, self._config.max_bytes, is_last, is_image=True)
            except SampleRejected as rejected:
                if rejected.reason not in PASSING or attempt == self._config.retries:
                    raise
                wait = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
                wait = max(wait, self._memory.host(origin).paused_until - time.monotonic())
                if wait >= self._seconds_to_wait(trip):
                    raise
                failed = SampleRejected(*rejected.args)  # without what it holds in memory
            await asyncio.sleep(wait)
            try:
                await trip.turn.move(origin, 0.0, trip.deadline)
            except SampleRejected:
                raise failed from None
        raise AssertionError("the loop returns or raises")

    async def _ask(self, url: URL, max_bytes: int, is_last: bool, is_image: bool) -> _Answer:
        """Returns the answer to one request."""
        headers = {"Connection": "close"} if is_last else None
        body = bytearray()
        try:
            async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status in REDIRECTS:
                    self._check_opt_out(response, is_image)
                    return _Answer(body, response.headers.get("Location", ""))
                self._check_status(response)
                self._check_opt_out(response, is_image)
                try:
                    body = await self._read(response, max_bytes, is_image)
                except BaseException:
                    response.close()
                    raise
            return _Answer(body)
        except BaseException as error:
            self._budget.release(len(body))
            if isinstance(error, FAILURES) and not isinstance(error, TimeoutError):
                raise failure(error) from error
            raise

    def _check_opt_out(self, response: aiohttp.ClientResponse, is_image: bool) -> None:
        if is_image:
            tags = response.headers.getall("X-Robots-Tag", [])
            check_headers(response.headers, tags, self._config)

    def _check_status(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status == 200:
            return
        detail = f"HTTP {status}"
        if status in (429, 503):
            wait = retry_after_seconds(response.headers.get("Retry-After"))
            if wait is not None:
                self._memory.pause(str(response.url.origin()), wait)
                detail += f", asked to wait {wait:.0f} s"
        if status == 429:
            raise SampleRejected(RejectReason.RATE_LIMITED, detail, status)
        if status in PASSING_STATUS or status >= 500:
            raise SampleRejected(RejectReason.SERVER_ERROR, detail, status)
        raise SampleRejected(RejectReason.HTTP_STATUS, detail, status)

    async def _read(
        self, response: aiohttp.ClientResponse, max_bytes: int, is_image: bool
    ) -> bytearray:
        """Returns the body, decompressed, held in the budget."""
        if (response.content_length or 0) > max_bytes:
            raise too_many(max_bytes)
        unpack = Unpacker(response.headers.get("Content-Encoding", ""))
        body = bytearray()
        is_sniffed = not is_image
        try:
            async for chunk in response.content.iter_any():
                piece = unpack(chunk, max_bytes + 1 - len(body))
                await self._budget.grow(len(piece), id(body))
                body += piece
                if not is_sniffed and len(body) >= SNIFFED_BYTES:
                    require_image(bytes(body[:SNIFFED_BYTES]))
                    is_sniffed = True
                if len(body) > max_bytes:
                    raise too_many(max_bytes)
            if not is_sniffed:
                require_image(bytes(body))
            if not unpack.is_complete:
                raise SampleRejected(RejectReason.INCOMPLETE_RESPONSE, "packed data ends early")
        except BaseException:
            self._budget.abandon(len(body), id(body))
            raise
        self._budget.finish(len(body), id(body))
        return body

    async def _check_rules(self, url: URL, origin: str) -> None:
        """Raises `SampleRejected` if robots.txt or tdmrep.json keep us from this URL."""
        if not (self._config.respects_robots or self._config.respects_tdm):
            return
        host = self._memory.host(origin)
        rules = host.rules
        if rules is None or rules.expires_at < time.monotonic():
            if origin not in self._pending:
                self._pending[origin] = asyncio.create_task(self._ask_rules(url.origin()))
            # Shielded: one image's deadline must not cancel what others wait for.
            rules = await asyncio.shield(self._pending[origin])
        rules.check(str(url), url.raw_path_qs, self._agent)

    async def _ask_rules(self, base: URL) -> HostRules:
        """Returns what a host says of itself, and remembers it."""
        origin = str(base)
        try:
            host = self._memory.host(origin)
            rules = HostRules(time.monotonic() + RULES_SECONDS, None, ())
            if self._config.respects_robots:
                rules = await self._ask_robots(base)
            if self._config.respects_tdm and rules.unreachable is None:
                rules.reservations = await self._ask_reservations(base)
            delay = crawl_delay_seconds(rules.robots, self._agent)
            host.seconds_between_requests = max(host.seconds_between_requests, delay)
            host.rules = rules
            return rules
        finally:
            del self._pending[origin]

    async def _ask_robots(self, base: URL) -> HostRules:
        try:
            text = await self._ask_text(base / "robots.txt")
        except SampleRejected as rejected:
            if rejected.reason in NO_RULES:
                return HostRules(time.monotonic() + RULES_SECONDS, None, ())
            if rejected.reason in UNANSWERED_RULES:
                detail = f"robots.txt: {rejected.detail}"
                status = rejected.http_status
                rejected = SampleRejected(RejectReason.ROBOTS_UNREACHABLE, detail, status)
            # One without a traceback, which would hold the whole connection in memory.
            unreachable = SampleRejected(*rejected.args)
            return HostRules(time.monotonic() + MISSING_RULES_SECONDS, None, (), unreachable)
        return HostRules(time.monotonic() + RULES_SECONDS, parse_robots(text), ())

    async def _ask_reservations(self, base: URL) -> tuple[tuple[str, bool], ...]:
        try:
            return parse_tdmrep(await self._ask_text(base / ".well-known" / "tdmrep.json"))
        except SampleRejected:
            return ()

    async def _ask_text(self, url: URL) -> str:
        """Returns a small text behind a URL, asked under the same guards as an image."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                for _ in range(self._config.max_redirects + 1):
                    self._guard.check_url(url)
                    answer = await self._ask(url, MAX_RULES_BYTES, is_last=False, is_image=False)
                    if answer.location is None:
                        self._budget.release(len(answer.body))
                        return answer.body.decode("utf-8", "replace")
                    url = redirected(url, answer.location)
        except TimeoutError:
            raise SampleRejected(RejectReason.TIMED_OUT, "no answer") from None
        raise SampleRejected(RejectReason.BAD_REDIRECT, "too many redirects")


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Returns the TLS settings of this process: made once, since it is slow."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context
