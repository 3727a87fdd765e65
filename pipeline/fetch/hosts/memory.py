"""What hosts ask of us, and what is remembered of them: opt-outs, pauses, failures."""

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass

from protego import Protego

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.names import NameCache
from pipeline.fetch.hosts.robots import MAX_OPT_OUTS, MEMORY_PER_HOST
from pipeline.fetch.hosts.shares import HostShare
from pipeline.fetch.hosts.tdmrep import is_reserved
from schemas.errors import RejectReason, SampleRejected

RULES_SECONDS = 24 * 3600.0
"""How long robots.txt is remembered. Source: RFC 9309, section 2.4."""

MISSING_RULES_SECONDS = 60.0
"""How long an unreachable robots.txt is remembered."""

MAX_HOSTS = 50_000
"""Hosts remembered in a process; the longest unused are forgotten."""

MAX_RULES_MEMORY_BYTES = 256 * 1024 * 1024
"""What the rules of all hosts take, at most, as `HostRules.memory_bytes` counts."""

FIRST_REFUSAL_SECONDS = 1.0
MAX_REFUSAL_SECONDS = 60.0
"""How long a host is left alone after a 429 or 503 that names no time: twice as long each time."""


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
    memory_bytes: int = MEMORY_PER_HOST
    """What this takes in memory, at most."""

    @property
    def allow_all(self) -> bool:
        """Whether the host has nothing against any URL."""
        return self.unreachable is None and self.robots is None and not self.reservations

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

    paused_until: float = 0.0
    """By its own wish (429, 503, Retry-After), on the monotonic clock."""
    refusals: int = 0
    """Pauses in a row for which it named no time."""
    dead_until: float = 0.0
    failures: int = 0
    """In a row."""
    seconds_between_requests: float = 0.0
    """Of this worker: longer than the host asks for, where others ask it as well."""
    busy_seconds: float = 0.0
    """How long a request takes, the last ones counting most."""

    def took(self, seconds: float) -> None:
        """Takes note of how long a request took."""
        self.busy_seconds = (self.busy_seconds + seconds) / 2


class HostMemory:
    """What this process remembers of hosts, from shard to shard, bounded."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self.share = HostShare.of(config)
        """What of a host's limits is for this process."""
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._rules: OrderedDict[str, HostRules] = OrderedDict()
        self._rules_bytes = 0
        self._opt_outs: OrderedDict[bytes, SampleRejected] = OrderedDict()
        self.names = NameCache()
        """What the hosts' names stand for."""

    def host(self, origin: str) -> Host:
        """Returns what is remembered of a host."""
        host = self._hosts.get(origin)
        if host is None:
            rate = self._config.requests_per_second_per_host
            between = self.share.seconds_between(1 / rate) if rate else 0.0
            host = self._hosts[origin] = Host(seconds_between_requests=between)
            if len(self._hosts) > MAX_HOSTS:
                self._forget_rules(self._hosts.popitem(last=False)[0])
        else:
            self._hosts.move_to_end(origin)
        return host

    def rules(self, origin: str) -> HostRules | None:
        """Returns what a host says of itself, None if that must be asked."""
        rules = self._rules.get(origin)
        if rules is None or rules.expires_at < time.monotonic():
            return None
        self._rules.move_to_end(origin)
        return rules

    def has_rules(self, origin: str) -> bool:
        """Returns whether a host was asked for its rules, however long ago."""
        return origin in self._rules

    def keep_rules(self, origin: str, rules: HostRules) -> None:
        """Remembers what a host says of itself; the longest unused rules of others give way."""
        self._forget_rules(origin)
        self._rules[origin] = rules
        self._rules_bytes += rules.memory_bytes
        while self._rules_bytes > MAX_RULES_MEMORY_BYTES and len(self._rules) > 1:
            self._forget_rules(next(iter(self._rules)))

    def _forget_rules(self, origin: str) -> None:
        rules = self._rules.pop(origin, None)
        if rules is not None:
            self._rules_bytes -= rules.memory_bytes

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

    def refused(self, origin: str) -> None:
        """Takes note that the host wants to be left alone but did not say how long.

        Answers that were on their way during a pause count with the one that began it.
        """
        host = self.host(origin)
        if host.paused_until <= time.monotonic():
            wait = FIRST_REFUSAL_SECONDS * 2.0 ** min(host.refusals, 30)
            host.refusals += 1
            self.pause(origin, min(wait, MAX_REFUSAL_SECONDS))

    def accepted(self, origin: str) -> None:
        """Takes note that the host let a request through; during a pause that says nothing."""
        host = self.host(origin)
        if host.paused_until <= time.monotonic():
            host.refusals = 0

    def require_not_opted_out(self, url: str) -> None:
        """Raises `SampleRejected` if the page has opted out when it was asked before."""
        found = self._opt_outs.get(_digest(url)) if self._opt_outs else None
        if found is not None:
            raise SampleRejected(*found.args)

    def keep_opt_out(self, url: str, rejected: SampleRejected) -> None:
        """Remembers that a page has opted out, so that it is never asked again."""
        self._opt_outs[_digest(url)] = SampleRejected(*rejected.args)
        if len(self._opt_outs) > MAX_OPT_OUTS:
            self._opt_outs.popitem(last=False)


def _digest(url: str) -> bytes:
    return hashlib.blake2b(url.encode(), digest_size=12).digest()
