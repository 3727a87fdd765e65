import asyncio
import socket
from collections import Counter
from typing import Any

import pytest

from pipeline.fetch.hosts.names import FAILED_SECONDS, FOUND_SECONDS, NameCache
from pipeline.fetch.http.resolver import CachedResolver

V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 0, 0, 0))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what the system is asked; names that begin with `no` have no address."""
    counts: Counter[str] = Counter()

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        counts[host] += 1
        if host.startswith("no"):
            raise socket.gaierror(-2, "Name or service not known")
        return [V6, V4]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    return counts


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Gives the time that the cache sees, in its first place."""
    now = [1000.0]
    monkeypatch.setattr("pipeline.fetch.http.resolver.time.monotonic", lambda: now[0])
    return now


def resolved(cache: NameCache, *names: str) -> list[Any]:
    """Returns what a new resolver says of names asked at once, as each shard has one."""

    async def run() -> list[Any]:
        resolver = CachedResolver(cache)
        try:
            asking = (resolver.resolve(name, 80) for name in names)
            return await asyncio.gather(*asking, return_exceptions=True)
        finally:
            await resolver.close()

    return asyncio.run(run())


def test_a_name_is_asked_once_for_all_who_want_it(asked: Counter[str]) -> None:
    found = resolved(NameCache(), *["a.example"] * 50)
    assert asked == {"a.example": 1}
    assert [one["host"] for one in found[49]] == ["192.0.2.7", "2001:db8::7"]
    assert found[0][0]["port"] == 80


def test_a_later_shard_asks_no_name_again_while_it_is_fresh(
    asked: Counter[str], clock: list[float]
) -> None:
    cache = NameCache()
    for _ in range(3):
        resolved(cache, "a.example")
    assert asked == {"a.example": 1}
    clock[0] += FOUND_SECONDS + 1
    resolved(cache, "a.example")
    assert asked == {"a.example": 2}


def test_a_failure_is_remembered_for_a_shorter_time(
    asked: Counter[str], clock: list[float]
) -> None:
    cache = NameCache()
    for _ in range(3):
        (found,) = resolved(cache, "no.example")
        assert isinstance(found, OSError)
        assert "not known" in str(found)
    assert asked == {"no.example": 1}
    clock[0] += FAILED_SECONDS + 1
    resolved(cache, "no.example")
    assert asked == {"no.example": 2}


def test_the_longest_known_names_give_way(
    asked: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fetch.hosts.names.MAX_NAMES", 2)
    cache = NameCache()
    for name in ("a.example", "b.example", "c.example", "b.example", "a.example"):
        resolved(cache, name)
    assert asked == {"a.example": 2, "b.example": 1, "c.example": 1}
