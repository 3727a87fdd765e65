"""What hosts ask of us: opt-outs, pauses, and how many requests at once they get."""

import asyncio
import email.utils
import heapq
import json
import re
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protego import Protego

from pipeline.config import FetchConfig
from schemas.errors import RejectReason, SampleRejected

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""X-Robots-Tag directives that leave an image out; none is short for noindex, nofollow."""

RULES_SECONDS = 24 * 3600.0
"""How long robots.txt is remembered. Source: RFC 9309, section 2.4."""

MISSING_RULES_SECONDS = 60.0
"""How long an unreachable robots.txt is remembered."""

MAX_HOSTS = 50_000
"""Hosts remembered in a process; the longest unused are forgotten."""

MAX_CRAWL_DELAY_SECONDS = 30.0


@dataclass(slots=True)
class HostRules:
    """What a host's robots.txt and tdmrep.json say."""

    expires_at: float
    robots: Protego | None
    """None allows everything."""
    reservations: tuple[tuple[str, bool], ...]
    """Path patterns of tdmrep.json and whether what they match is reserved."""
    unreachable: SampleRejected | None = None
    """Why nothing of this host may be asked."""

    def check(self, url: str, path: str, agent: str) -> None:
        """Raises `SampleRejected` if the host does not want this URL to be taken."""
        if self.unreachable is not None:
            raise SampleRejected(*self.unreachable.args)
        if self.robots is not None and not self.robots.can_fetch(url, agent):
            raise SampleRejected(RejectReason.ROBOTS_DISALLOWED, f"robots.txt for {agent}")
        if is_reserved(self.reservations, path):
            raise SampleRejected(RejectReason.TDM_RESERVED, "tdmrep.json")


@dataclass(slots=True)
class Host:
    """What is remembered of a host: scheme, name and port."""

    rules: HostRules | None = None
    paused_until: float = 0.0
    """By its own wish (Retry-After), on the monotonic clock."""
    dead_until: float = 0.0
    failures: int = 0
    """In a row."""
    seconds_between_requests: float = 0.0


class HostMemory:
    """What this process remembers of hosts, from shard to shard, bounded."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    def host(self, origin: str) -> Host:
        """Returns what is remembered of a host."""
        host = self._hosts.get(origin)
        if host is None:
            rate = self._config.requests_per_second_per_host
            host = self._hosts[origin] = Host(seconds_between_requests=1 / rate if rate else 0.0)
            if len(self._hosts) > MAX_HOSTS:
                self._hosts.popitem(last=False)
        else:
            self._hosts.move_to_end(origin)
        return host

    def require_available(self, origin: str) -> None:
        """Raises `SampleRejected` if the host is dead, or wants more time than an image has."""
        host, now = self.host(origin), time.monotonic()
        if host.dead_until > now:
            detail = (
                f"{host.failures} failures in a row, not asked for {host.dead_until - now:.0f} s"
            )
            raise SampleRejected(RejectReason.HOST_UNAVAILABLE, detail)
        if host.paused_until - now > self._config.timeout_seconds:
            detail = f"the host asked to wait more than {self._config.timeout_seconds:g} s"
            raise SampleRejected(RejectReason.RATE_LIMITED, detail)

    def succeeded(self, origin: str) -> None:
        """Takes note that the host answered."""
        host = self.host(origin)
        host.failures, host.dead_until = 0, 0.0

    def failed(self, origin: str) -> None:
        """Takes note that the host did not answer; enough of these in a row make it dead."""
        host = self.host(origin)
        host.failures += 1
        if 0 < self._config.host_failures <= host.failures:
            host.dead_until = time.monotonic() + self._config.host_pause_seconds

    def pause(self, origin: str, seconds: float) -> None:
        """Takes note that the host asked to be left alone for so long."""
        host = self.host(origin)
        host.paused_until = max(host.paused_until, time.monotonic() + seconds)


@dataclass(slots=True)
class _Queue:
    """The rows of one host that wait."""

    rows: deque[int] = field(default_factory=deque)
    active: int = 0
    next_at: float = 0.0
    is_listed: bool = False


class HostQueues:
    """Hands out rows so that no host gets more than its share and no slot waits for a host."""

    def __init__(
        self, rows: Iterable[tuple[str, int]], memory: HostMemory, config: FetchConfig
    ) -> None:
        self._memory, self._config = memory, config
        self._queues: dict[str, _Queue] = {}
        for origin, row in rows:
            self._queues.setdefault(origin, _Queue()).rows.append(row)
        self._ready: deque[str] = deque()
        self._later: list[tuple[float, str]] = []
        self._waiting = sum(len(queue.rows) for queue in self._queues.values())
        self._changed = asyncio.Event()
        for origin in self._queues:
            self._list(origin)

    async def take(self) -> tuple[str, int, bool] | None:
        """Returns a host, the row to ask of it and whether that is its last; None at the end."""
        while self._waiting:
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                self._ready.append(heapq.heappop(self._later)[1])
            if self._ready:
                return self._hand_out(self._ready.popleft(), now)
            pause = self._later[0][0] - now if self._later else None
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), pause)
            except TimeoutError:
                continue
        self._changed.set()
        return None

    def _hand_out(self, origin: str, now: float) -> tuple[str, int, bool]:
        queue = self._queues[origin]
        row = queue.rows.popleft()
        self._waiting -= 1
        queue.active += 1
        queue.is_listed = False
        queue.next_at = now + self._memory.host(origin).seconds_between_requests
        self._list(origin)
        if self._ready or not self._waiting:
            self._changed.set()
        return origin, row, not queue.rows

    def give_back(self, origin: str) -> None:
        """Takes note that a row's request is over."""
        self._queues[origin].active -= 1
        self._list(origin)
        self._changed.set()

    def _list(self, origin: str) -> None:
        """Puts the host where it will be taken from as soon as it may be asked."""
        queue = self._queues[origin]
        is_full = bool(origin) and queue.active >= self._config.connections_per_host
        if queue.is_listed or not queue.rows or is_full:
            return
        queue.is_listed = True
        now = time.monotonic()
        paused_until = self._memory.host(origin).paused_until
        if paused_until - now > self._config.timeout_seconds:
            paused_until = 0.0  # too long to wait for: its rows are rejected right away
        start_at = max(queue.next_at, paused_until)
        if start_at > now:
            heapq.heappush(self._later, (start_at, origin))
        else:
            self._ready.append(origin)


def check_headers(headers: Mapping[str, str], tags: list[str], config: FetchConfig) -> None:
    """Raises `SampleRejected` if an answer's headers opt out.

    Args:
        headers: of the answer; looked up whatever their case.
        tags: all values of X-Robots-Tag.
    """
    if config.respects_robots_tag:
        found = sorted(opt_outs(tags, agent_token(config.user_agent)))
        if found:
            detail = f"X-Robots-Tag: {', '.join(found)}"
            raise SampleRejected(RejectReason.OPTED_OUT_BY_HEADER, detail)
    if config.respects_tdm and headers.get("TDM-Reservation", "").strip() == "1":
        raise SampleRejected(RejectReason.TDM_RESERVED, "TDM-Reservation: 1")


def agent_token(user_agent: str) -> str:
    """Returns the product token that robots.txt knows us by. Source: RFC 9309, section 2.2.1."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0]


def opt_outs(tags: list[str], agent: str) -> set[str]:
    """Returns the directives in X-Robots-Tag values that leave the image out, for us or for all.

    `googlebot: noindex` speaks to another agent; what follows a name, up to the next, is its.
    """
    found = set()
    for tag in tags:
        addressee = None
        for part in tag.split(","):
            name, separator, rest = part.partition(":")
            if separator and name.strip().lower() not in ("unavailable_after", "max-snippet"):
                addressee, part = name.strip().lower(), rest
            directive = part.strip().lower()
            if addressee in (None, "*", agent.lower()) and directive in OPT_OUTS:
                found.add(directive)
    return found


def parse_robots(text: str) -> Protego:
    """Returns the rules of a robots.txt."""
    return Protego.parse(text)


def crawl_delay_seconds(robots: Protego | None, agent: str) -> float:
    """Returns the seconds between requests that robots.txt asks for, bounded."""
    delay = robots.crawl_delay(agent) if robots is not None else None
    return min(max(float(delay or 0.0), 0.0), MAX_CRAWL_DELAY_SECONDS)


def parse_tdmrep(text: str) -> tuple[tuple[str, bool], ...]:
    """Returns the patterns of a tdmrep.json and whether each is reserved; () if it is none.

    Source: W3C TDM Reservation Protocol, final community group report, section 6.
    """
    try:
        rules: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(rules, list):
        return ()
    return tuple(
        (str(rule["location"]), str(rule.get("tdm-reservation", 0)) == "1")
        for rule in rules[:1000]
        if isinstance(rule, dict) and "location" in rule
    )


def is_reserved(reservations: tuple[tuple[str, bool], ...], path: str) -> bool:
    """Returns whether the longest pattern that matches the path reserves it."""
    matching = [
        (len(pattern), reserved) for pattern, reserved in reservations if matches(pattern, path)
    ]
    return max(matching)[1] if matching else False


def matches(pattern: str, path: str) -> bool:
    """Returns whether a path begins with a pattern of robots.txt's kind (`*`, final `$`)."""
    is_whole = pattern.endswith("$")
    pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(pieces[0]):
        return False
    place = len(pieces[0])
    for piece in pieces[1:]:
        found = path.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return not is_whole or place == len(path) or (len(pieces) > 1 and path.endswith(pieces[-1]))


def retry_after_seconds(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks to wait, None if it says nothing."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())
