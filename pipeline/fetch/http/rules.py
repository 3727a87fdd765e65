"""What hosts say of themselves: robots.txt and tdmrep.json, asked once for all who wait."""

import asyncio
import time

from yarl import URL

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MISSING_RULES_SECONDS, RULES_SECONDS, HostMemory, HostRules
from pipeline.fetch.hosts.robots import (
    agent_token,
    crawl_delay_seconds,
    groups_for,
    parse_robots,
    rules_memory_bytes,
)
from pipeline.fetch.hosts.tdmrep import parse_tdmrep
from pipeline.fetch.http.client import MAX_RULES_BYTES, HttpClient
from pipeline.fetch.http.urls import plain_reading
from schemas.errors import RejectReason, SampleRejected

UNANSWERED_RULES = frozenset(
    {
        RejectReason.SERVER_ERROR,
        RejectReason.RATE_LIMITED,
        RejectReason.TIMED_OUT,
        RejectReason.INCOMPLETE_RESPONSE,
        RejectReason.BAD_RESPONSE,
        RejectReason.DENIED_REDIRECT,
    }
)
"""Failures that leave open what robots.txt says: nothing is asked then (RFC 9309, 2.3.1.4). That it
leads to a denied address is one of them: the images of the host are on no list themselves."""

NO_RULES = frozenset({RejectReason.HTTP_STATUS, RejectReason.BAD_REDIRECT})
"""Failures that mean that there is no robots.txt: then everything may be asked (2.3.1.3)."""


class RuleKeeper:
    """Asks hosts for their rules, and holds images to them."""

    def __init__(self, config: FetchConfig, memory: HostMemory, client: HttpClient) -> None:
        self._config, self._memory, self._client = config, memory, client
        self._agent = agent_token(config.user_agent)
        self._pending: dict[str, asyncio.Task[HostRules]] = {}

    async def close(self) -> None:
        """Ends what is still asked."""
        for task in list(self._pending.values()):
            task.cancel()
        await asyncio.gather(*self._pending.values(), return_exceptions=True)

    def are_known(self, origin: str) -> bool:
        """Returns whether a host need not be asked for its rules."""
        asks = self._config.respects_robots or self._config.respects_tdm
        return not asks or self._memory.rules(origin) is not None

    async def check(self, url: URL, origin: str) -> None:
        """Raises `SampleRejected` if robots.txt or tdmrep.json keep us from this URL."""
        if not (self._config.respects_robots or self._config.respects_tdm):
            return
        rules = self._memory.rules(origin)
        if rules is None:
            if origin not in self._pending:
                self._pending[origin] = asyncio.create_task(self._ask_rules(url.origin()))
            # Shielded: one image's deadline must not cancel what others wait for.
            rules = await asyncio.shield(self._pending[origin])
        if rules.allow_all:
            return
        for target in {url.raw_path_qs, plain_reading(url.raw_path_qs)}:
            rules.check(f"{origin}{target}", target, self._agent)

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
                rules.memory_bytes += rules_memory_bytes("", rules.reservations)
            delay = crawl_delay_seconds(rules.robots, self._agent)
            between = self._memory.share.seconds_between(delay)
            host.seconds_between_requests = max(host.seconds_between_requests, between)
            self._memory.keep_rules(origin, rules)
            return rules
        finally:
            del self._pending[origin]

    async def _ask_robots(self, base: URL) -> HostRules:
        try:
            text = whole_lines(await self._ask_text(base / "robots.txt"))
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
        text = groups_for(text, self._agent)
        expires_at = time.monotonic() + RULES_SECONDS
        memory = rules_memory_bytes(text, ())
        return HostRules(expires_at, parse_robots(text), (), memory_bytes=memory)

    async def _ask_reservations(self, base: URL) -> tuple[tuple[str, bool], ...]:
        try:
            body = await self._ask_text(base / ".well-known" / "tdmrep.json")
        except SampleRejected:
            return ()
        return parse_tdmrep(decoded(body))

    async def _ask_text(self, url: URL) -> bytearray:
        """Returns a small text behind a URL, asked under the same guards as an image."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds) as deadline:
                body = await self._client.follow(
                    url, lambda url, _: self._client.ask_text(url, deadline)
                )
        except TimeoutError:
            raise SampleRejected(RejectReason.TIMED_OUT, "no answer") from None
        self._client.release(body)
        return body


def whole_lines(body: bytearray) -> str:
    """Returns the text of a robots.txt without a last line that is cut.

    Half a line would say something else: `/` is half of `/private`.
    """
    if len(body) >= MAX_RULES_BYTES:
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
    return decoded(body)


def decoded(body: bytearray) -> str:
    """Returns the text of a file of rules, without its byte order mark."""
    return body.decode("utf-8-sig", "replace")
