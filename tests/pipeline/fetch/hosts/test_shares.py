"""Workers that share a host keep together to what one alone may ask of it."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.shares import MAX_FIRST_WAIT_SECONDS, HostShare
from pipeline.fetch.hosts.slots import HostSlots
from schemas.errors import SampleRejected


def share_of(workers: int, limit: int = 8) -> HostShare:
    return HostShare.of(FetchConfig(sharing_workers=workers, connections_per_host=limit))


@given(st.integers(1, 5000), st.integers(1, 200))
def test_the_shares_add_up_to_what_a_host_allows(workers: int, limit: int) -> None:
    share = share_of(workers, limit)
    part_of_time = 1 / (1 + share.rest_ratio)
    at_once = workers * share.connections * part_of_time
    assert share.connections >= 1
    assert at_once <= limit * (1 + 1e-9)
    assert at_once >= limit / 2 - 1e-9
    assert workers / share.seconds_between(10.0) == pytest.approx(1 / 10.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_alone_has_all_of_it(workers: int) -> None:
    share = share_of(workers)
    assert (share.connections, share.rest_ratio, share.first_wait()) == (8, 0.0, 0.0)
    assert (share.seconds_between(10.0), share.phase()) == (10.0, 1.0)


def test_workers_that_begin_together_ask_a_host_apart() -> None:
    waits = [share_of(100).first_wait() for _ in range(200)]
    assert 0.0 <= min(waits) < 3.0 < 8.0 < max(waits) <= 100 / 8 - 1
    assert max(share_of(10_000).first_wait() for _ in range(200)) <= MAX_FIRST_WAIT_SECONDS


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("slots", "memory"):
        monkeypatch.setattr(f"pipeline.fetch.hosts.{module}.time", clock)
    return clock


def slots_of(config: FetchConfig) -> HostSlots:
    return HostSlots(HostMemory(config), config)


def test_a_worker_rests_for_as_long_as_the_others_have_their_turn(clock: Clock) -> None:
    slots = slots_of(FetchConfig(sharing_workers=24, connections_per_host=8, respects_robots=False))
    slots.start_at("host")
    clock.now += 100.0
    slot = slots.begin("host")
    assert slots.is_full("host")
    clock.now += 1.5
    slot.end()
    assert slots.start_at("host") == pytest.approx(clock.now + 2 * 1.5)
    assert not slots.is_full("host")


def test_what_waiting_for_the_pace_takes_is_no_reason_to_rest(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("pipeline.fetch.hosts.slots.asyncio.sleep", sleep)
    slots = slots_of(FetchConfig(sharing_workers=16, connections_per_host=8))
    slots.start_at("host")
    clock.now += 100.0

    async def ask() -> None:
        slot = slots.begin("host")
        clock.now += 1.0  # its rules are asked, which tell a pace
        slots._memory.host("host").seconds_between_requests = 50.0
        await slot.move("host", 1.0)
        clock.now += 2.0
        first = clock.now
        slot.end()
        assert slots.start_at("host") >= first + 3.0
        await slots.wait("host", 1.0)
        assert clock.now <= first + 50.0

    asyncio.run(ask())


def test_a_pace_is_kept_by_all_workers_together(clock: Clock) -> None:
    config = FetchConfig(sharing_workers=10, requests_per_second_per_host=2.0)
    all_slots = [slots_of(config) for _ in range(10)]
    begun: list[float] = []
    began = clock.now
    while clock.now < began + 100.0:
        for slots in all_slots:
            if slots.start_at("host") <= clock.now and not slots.is_full("host"):
                slots.begin("host").end()
                begun.append(clock.now)
        clock.now += 0.05
    later = [moment for moment in begun if moment >= began + 10.0]
    assert 2.0 * 90 * 0.95 <= len(later) <= 2.0 * 90 * 1.05
    in_a_second: Callable[[int], int] = lambda second: sum(  # noqa: E731
        began + second <= moment < began + second + 1 for moment in later
    )
    assert max(map(in_a_second, range(10, 100))) < 10, "they must not all ask at once"


def test_waiting_for_room_that_others_take_costs_an_image_its_own_part_alone() -> None:
    config = FetchConfig(sharing_workers=4, connections_per_host=4)

    async def wait() -> float:
        slots = slots_of(config)
        await slots.wait("host", 0.0)
        async with asyncio.timeout(1000.0) as deadline:
            before = deadline.when() or 0.0
            with pytest.raises(SampleRejected):
                await slots.wait("host", 0.01, deadline)
            return (deadline.when() or 0.0) - before

    moved = asyncio.run(wait())
    assert moved >= 0.04 * 3 / 4 - 0.001
