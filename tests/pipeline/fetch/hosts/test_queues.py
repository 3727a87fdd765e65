import asyncio

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.queues import ROWS_PER_SLOW_ROW, HostQueues
from pipeline.fetch.hosts.slots import HostSlots

SETTINGS = FetchConfig(connections_per_host=1, respects_robots=False, respects_tdm=False)


def open_queues() -> HostQueues[int]:
    return HostQueues((), HostSlots(HostMemory(SETTINGS), SETTINGS), is_open=True)


def test_what_was_added_first_goes_first_and_later_rows_fill_what_is_free() -> None:
    async def take_all() -> list[int]:
        queues = open_queues()
        queues.add([("a", 1), ("a", 2), ("b", 3)])
        queues.add([("c", 4), ("a", 5)])
        taken, held = [], []
        for _ in range(3):
            slot, row, _ = await queues.take() or (None, 0, False)
            taken.append(row)
            held.append(slot)
        assert taken == [1, 3, 4]  # "a" is busy: what comes later goes on
        queues.add([("d", 6)])
        assert held[0] is not None
        held[0].end()
        while len(taken) < 6:
            slot, row, _ = await queues.take() or (None, 0, False)
            taken.append(row)
            if slot is not None:
                slot.end()
        return taken

    assert asyncio.run(take_all()) == [1, 3, 4, 2, 5, 6]


def test_who_waits_at_an_open_queue_gets_what_is_added_until_it_is_closed() -> None:
    async def run() -> list[int | None]:
        queues, found = open_queues(), list[int | None]()

        async def work() -> None:
            while (taken := await queues.take()) is not None:
                found.append(taken[1])
                if taken[0] is not None:
                    taken[0].end()
            found.append(None)

        workers = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.sleep(0)
        queues.add([(host, row) for row, host in enumerate("abcab")])
        while len(found) < 5:
            await asyncio.sleep(0.001)
        queues.close()
        await asyncio.gather(*workers)
        return found

    found = asyncio.run(run())
    assert sorted(row for row in found if row is not None) == [0, 1, 2, 3, 4]
    assert found.count(None) == 3


def test_hosts_that_nobody_asks_are_forgotten() -> None:
    slots = HostSlots(HostMemory(SETTINGS), SETTINGS)
    slots._most = 10
    slots.begin("held")
    for number in range(9):
        slots.begin(f"host {number}").end()
    assert len(slots._hosts) == 10
    slots.begin("one more").end()
    assert set(slots._hosts) == {"held", "one more"}


def test_hosts_that_take_long_are_asked_early_but_not_alone() -> None:
    memory = HostMemory(SETTINGS)
    for host, seconds in (("slow", 9.0), ("slower", 30.0), ("fast", 0.4)):
        for _ in range(10):
            memory.host(host).took(seconds)

    async def take_all() -> list[str]:
        queues: HostQueues[str] = HostQueues((), HostSlots(memory, SETTINGS), is_open=True)
        queues.add([(f"unknown {number}", "first") for number in range(12)])
        queues.add([("fast", "fast"), ("slow", "slow"), ("slower", "slower")])
        return [(await queues.take() or (None, "", False))[1] for _ in range(15)]

    taken = asyncio.run(take_all())
    early = taken[:ROWS_PER_SLOW_ROW]
    assert early.count("slower") == 1 and early.count("first") == ROWS_PER_SLOW_ROW - 1
    assert taken.index("slower") < taken.index("slow") <= 2 * ROWS_PER_SLOW_ROW
    assert taken[-1] == "fast" and taken.count("first") == 12


def test_what_a_request_took_counts_for_its_host() -> None:
    memory = HostMemory(SETTINGS)
    slots = HostSlots(memory, SETTINGS)
    assert slots.slowness("a") == 0
    slots.begin("a")
    slots.end("a", busy_seconds=8.0)
    assert slots.slowness("a") == 4
    slots.begin("a")
    slots.end("a", busy_seconds=8.0)
    assert slots.slowness("a") == 6
