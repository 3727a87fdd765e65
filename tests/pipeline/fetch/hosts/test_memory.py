import asyncio
import time

import pytest

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MAX_HOSTS, HostMemory
from pipeline.fetch.hosts.queues import HostQueues
from pipeline.fetch.hosts.slots import HostSlots
from pipeline.fetch.http.download import Downloader
from tests.downloads import AnswersAtOnce, download, settings
from tests.web_server import ALLOWED_HOST, WebServer

IMAGE = b"\xff\xd8\xff" + bytes(200)


def test_each_check_can_be_switched_off(web_server: WebServer) -> None:
    web_server.serve("/robots.txt", b"User-agent: *\nDisallow: /")
    url = web_server.serve("/a", IMAGE)
    free = settings(web_server, respects_robots=False, respects_tdm=False)
    assert download(free, url) == [None]
    assert web_server.paths() == ["/a"]


def test_the_user_agent_names_a_contact(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE)
    download(settings(web_server, contact="mailto:crawl@example.org"), url)
    agents = {request.headers["user-agent"] for request in web_server.requests}
    assert agents == {"aligngpt/0.1 (+mailto:crawl@example.org)"}


def test_an_opted_out_page_is_not_asked_twice(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE, {"X-Robots-Tag": "noai"})
    download(settings(web_server, retries=3), url)
    assert web_server.paths().count("/a") == 1


def queues_of(rows: list[tuple[str, int]], config: FetchConfig) -> HostQueues:
    return HostQueues(rows, HostSlots(HostMemory(config), config))


def test_no_host_gets_more_than_its_share_and_no_slot_waits_for_it() -> None:
    config = FetchConfig(connections_per_host=2, respects_robots=False, respects_tdm=False)
    rows = [("slow", row) for row in range(5)] + [("quick", 5)]

    async def take_all() -> list[tuple[int, bool]]:
        queues = queues_of(rows, config)
        taken = [await queues.take() for _ in range(3)]
        assert sorted(one[1] for one in taken if one) == [0, 1, 5]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queues.take(), 0.05)
        busy = [one[0] for one in taken if one and one[1] != 5]
        while len(taken) < 6:
            slot = busy.pop(0)
            assert slot is not None
            slot.end()
            taken.append(await queues.take())
            busy += [one[0] for one in taken[-1:] if one]
        assert await queues.take() is None
        return [(row, is_last) for _, row, is_last in (one for one in taken if one)]

    taken = asyncio.run(take_all())
    assert sorted(row for row, _ in taken) == [0, 1, 2, 3, 4, 5]
    assert [row for row, is_last in taken if is_last] == [5, 4]


def test_a_rate_keeps_requests_apart() -> None:
    config = FetchConfig(requests_per_second_per_host=50.0)

    async def take_all() -> float:
        queues = queues_of([("host", row) for row in range(4)], config)
        before = time.monotonic()
        while (taken := await queues.take()) is not None:
            assert taken[0] is not None
            taken[0].end()
        return time.monotonic() - before

    assert asyncio.run(take_all()) >= 3 / 50 - 0.001


def test_the_memory_of_hosts_is_bounded() -> None:
    memory = HostMemory(FetchConfig())
    for number in range(MAX_HOSTS + 10):
        memory.host(f"http://{number}.test")
    assert len(memory._hosts) == MAX_HOSTS


def test_at_most_so_many_requests_reach_a_host_at_once(web_server: WebServer) -> None:
    counter = AnswersAtOnce(IMAGE, allowed=3)

    config = settings(web_server, connections_per_host=3, respects_robots=False, respects_tdm=False)
    rows = [(ALLOWED_HOST, row) for row in range(20)]
    url = web_server.route("/a", counter.answer)

    async def work(queues: HostQueues, downloader: Downloader) -> None:
        while (taken := await queues.take()) is not None:
            downloader.release(await downloader.download(url, slot=taken[0]))

    async def run() -> None:
        memory = HostMemory(config)
        slots = HostSlots(memory, config)
        queues, downloader = HostQueues(rows, slots), Downloader(config, memory, slots=slots)
        await asyncio.gather(*(work(queues, downloader) for _ in range(10)))
        await downloader.close()

    asyncio.run(run())
    assert counter.most == 3


def test_what_is_remembered_of_a_host_that_is_not_there_holds_nothing_of_its_connection() -> None:
    config = FetchConfig(timeout_seconds=5.0, retries=0)
    memory = HostMemory(config)
    assert download(config, "http://no-such-host.invalid/x.png", memory=memory) != [None]
    rules = memory.rules("http://no-such-host.invalid")
    assert rules is not None
    assert rules.unreachable is not None
    assert rules.unreachable.__traceback__ is None
    assert rules.unreachable.__context__ is None
