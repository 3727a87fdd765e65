import asyncio
from dataclasses import replace

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.queues import ROWS_PER_SLOW_ROW, HostQueues
from pipeline.fetch.hosts.slots import HostSlots

SETTINGS = FetchConfig(connections_per_host=1, respects_robots=False, respects_tdm=False)


MANY = replace(SETTINGS, connections_per_host=100)


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


def taken_rows(memory: HostMemory, *added: list[tuple[str, str]]) -> list[str]:
    """Returns rows in the order in which they are handed out, no request ending meanwhile."""

    async def take_all() -> list[str]:
        queues: HostQueues[str] = HostQueues((), HostSlots(memory, MANY), is_open=True)
        for rows in added:
            queues.add(rows)
        return [(await queues.take() or (None, "", False))[1] for _ in range(sum(map(len, added)))]

    return asyncio.run(take_all())


def test_of_what_was_added_together_the_host_with_most_rows_goes_first() -> None:
    memory = HostMemory(MANY)
    rows = {"few": 1, "most": 4, "more": 3}
    for host in rows:
        memory.host(host).took(0.1)
    taken = taken_rows(memory, [(host, host) for host, count in rows.items() for _ in range(count)])
    left = dict(rows)
    for host in taken:
        assert left[host] == max(left.values())
        left[host] -= 1


def test_a_host_of_which_nothing_is_known_goes_before_those_with_many_rows() -> None:
    memory = HostMemory(MANY)
    memory.host("known").took(0.1)
    taken = taken_rows(memory, [("known", "known")] * 3 + [("new", "new")])
    assert taken == ["new", "known", "known", "known"]


def test_of_slow_hosts_the_one_that_will_be_busy_longest_goes_first_whenever_it_was_added() -> None:
    memory = HostMemory(MANY)
    for host, seconds in (("a", 20.0), ("b", 20.0), ("fast", 0.1)):
        memory.host(host).took(seconds)
    first = [("a", "a")] * 2 + [("fast", "fast")] * 9
    taken = taken_rows(memory, first, [("b", "b")] * 5)
    assert [host for host in taken if host != "fast"][:4] == ["b", "b", "b", "a"]
    assert taken.index("b") < ROWS_PER_SLOW_ROW


def test_a_host_that_turns_out_slow_while_its_rows_wait_is_slow_for_these_too() -> None:
    memory = HostMemory(MANY)
    memory.host("other").took(0.1)
    slots = HostSlots(memory, MANY)

    async def take_some() -> list[str]:
        queues: HostQueues[str] = HostQueues((), slots, is_open=True)
        queues.add([("other", "other")] * 50)
        asked = slots.begin("turns slow")
        queues.add([("turns slow", "turns slow")] * 2)
        memory.host("turns slow").took(60.0)
        asked.end()
        taken = [await queues.take() or (None, "", False) for _ in range(2 * ROWS_PER_SLOW_ROW)]
        return [row for _, row, _ in taken]

    assert asyncio.run(take_some()).count("turns slow") == 2


def test_a_host_is_handed_out_once_for_each_row_wherever_it_was_listed() -> None:
    memory = HostMemory(MANY)
    slots = HostSlots(memory, MANY)

    async def take_all() -> list[int]:
        queues: HostQueues[int] = HostQueues((), slots, is_open=True)
        queues.add([(f"host {row % 5}", row) for row in range(50)])
        taken = []
        for number in range(50):
            memory.host(f"host {number % 5}").took(number / 5)  # slower and slower
            slot, row, _ = await queues.take() or (None, -1, False)
            assert slot is not None
            slot.end()
            taken.append(row)
        return taken

    assert sorted(asyncio.run(take_all())) == list(range(50))


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
