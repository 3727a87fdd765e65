"""Redirected requests are counted and paced like first ones, and nobody waits for ever."""

import asyncio
import random
import time
from typing import Any

import pytest
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.queues import HostQueues
from pipeline.fetch.hosts.slots import HostSlots, Slot
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests import downloads
from tests.downloads import AnswersAtOnce, download
from tests.web_server import ALLOWED_HOST, WebServer, response, unused_port

IMAGE = b"\xff\xd8\xff" + bytes(200)
OTHER_HOST = "127.0.0.3"


def settings(server: WebServer, **more: Any) -> FetchConfig:
    networks = (f"{ALLOWED_HOST}/32", f"{OTHER_HOST}/32")
    rules = {"respects_robots": False, "respects_tdm": False}
    return downloads.settings(server, **{"allow_networks": networks, **rules, **more})


def origin_of(url: str) -> str:
    return str(URL(url).origin())


def test_each_redirect_waits_for_the_rate_of_its_host(web_server: WebServer) -> None:
    web_server.serve("/0", IMAGE)
    for number in range(1, 4):
        web_server.redirect(f"/{number}", f"/{number - 1}")
    config = settings(web_server, requests_per_second_per_host=20.0)
    before = time.monotonic()
    assert download(config, web_server.url("/3")) == [None]
    assert time.monotonic() - before >= 3 / 20 - 0.001


def test_redirects_from_many_hosts_do_not_gather_at_one(web_server: WebServer) -> None:
    counter = AnswersAtOnce(IMAGE, allowed=3)

    web_server.route("/image", counter.answer)
    urls = [
        web_server.redirect(f"/{number}", web_server.url("/image", OTHER_HOST))
        for number in range(20)
    ]
    direct = [web_server.url("/image", OTHER_HOST)] * 5
    assert download(settings(web_server, connections_per_host=3), *urls, *direct) == [None] * 25
    assert counter.most == 3


def test_hosts_that_redirect_to_each_other_do_not_wait_in_a_ring(web_server: WebServer) -> None:
    web_server.serve("/image", IMAGE)
    web_server.redirect("/to-other", web_server.url("/image", OTHER_HOST))
    web_server.redirect("/to-allowed", web_server.url("/image", ALLOWED_HOST))
    urls = [web_server.url("/to-other")] * 5 + [web_server.url("/to-allowed", OTHER_HOST)] * 5
    assert download(settings(web_server, connections_per_host=1), *urls) == [None] * 10


SLOW_RATE: dict[str, Any] = {"requests_per_second_per_host": 0.3, "timeout_seconds": 3.0}
"""More time between two requests than an image has."""


@pytest.mark.slow
def test_waiting_for_the_rate_of_a_host_takes_no_time_from_an_image(web_server: WebServer) -> None:
    web_server.redirect("/old.jpg", "/new.jpg")
    web_server.serve("/new.jpg", IMAGE)
    assert download(settings(web_server, **SLOW_RATE), web_server.url("/old.jpg")) == [None]


@pytest.mark.slow
def test_a_retry_waits_for_the_rate_of_its_host_beyond_the_time_of_an_image(
    web_server: WebServer,
) -> None:
    url = web_server.sequence("/x", [response(b"", status=500), response(IMAGE)])
    config = settings(web_server, retries=1, **SLOW_RATE)
    memory = HostMemory(config)
    assert download(config, url, memory=memory) == [None]
    assert memory.host(origin_of(url)).failures == 0


@pytest.mark.slow
def test_a_dead_host_is_called_dead_also_at_a_low_rate(web_server: WebServer) -> None:
    port = unused_port()
    url = f"http://{ALLOWED_HOST}:{port}/"
    config = settings(web_server, retries=1, allow_ports=(port,), **SLOW_RATE)
    memory = HostMemory(config)
    assert download(config, url, memory=memory) == [RejectReason.CONNECT_FAILED]
    assert memory.host(origin_of(url)).failures == 1


def test_a_retry_that_gets_no_slot_leaves_the_failure_as_it_was(web_server: WebServer) -> None:
    url = web_server.serve("/x", b"", status=500)
    config = settings(web_server, retries=1, requests_per_second_per_host=0.01)

    async def ask() -> RejectReason:
        memory = HostMemory(config)
        slots = HostSlots(memory, config)
        downloader = Downloader(config, memory, slots=slots)
        _, slot = (slots.begin(origin_of(url)) for _ in range(2))
        with pytest.raises(SampleRejected, match="no free slot"):
            await slots.wait(origin_of(url), 0.0)
        with pytest.raises(SampleRejected) as raised:
            await downloader.download(url, slot=slot)
        await downloader.close()
        return raised.value.reason

    assert asyncio.run(ask()) == RejectReason.SERVER_ERROR


@pytest.mark.slow
def test_a_host_without_room_is_no_fault_of_it_or_of_who_redirects_there(
    web_server: WebServer,
) -> None:
    busy = web_server.url("/", OTHER_HOST)
    url = web_server.redirect("/start", web_server.url("/image", OTHER_HOST))
    config = settings(web_server, connections_per_host=1, timeout_seconds=4.0)
    memory = HostMemory(config)

    async def ask() -> RejectReason:
        slots = HostSlots(memory, config)
        slots.begin(origin_of(busy))
        downloader = Downloader(config, memory, slots=slots)
        with pytest.raises(SampleRejected, match=f"no free slot at {origin_of(busy)}") as raised:
            await downloader.download(url)
        await downloader.close()
        return raised.value.reason

    assert asyncio.run(ask()) == RejectReason.RATE_LIMITED
    assert [memory.host(origin_of(each)).failures for each in (url, busy)] == [0, 0]


@pytest.mark.slow
def test_the_host_that_is_silent_counts_as_silent_and_not_who_redirects_there(
    web_server: WebServer,
) -> None:
    web_server.hang("/silent")
    silent = web_server.url("/silent", OTHER_HOST)
    url = web_server.redirect("/start", silent)
    config = settings(web_server, timeout_seconds=4.0)
    memory = HostMemory(config)
    assert download(config, url, memory=memory) == [RejectReason.TIMED_OUT]
    assert [memory.host(origin_of(each)).failures for each in (url, silent)] == [0, 1]


def test_every_turn_is_given_back_whatever_ends_the_waiting() -> None:
    config = FetchConfig(connections_per_host=2)
    generator = random.Random(0)

    async def ask(slots: HostSlots) -> None:
        try:
            async with asyncio.timeout(generator.uniform(0.0, 0.02)):
                slot = await slots.wait("host", generator.uniform(0.0, 0.02))
                try:
                    await asyncio.sleep(generator.uniform(0.0, 0.01))
                    await slot.move(generator.choice(["host", "other"]), 0.01)
                    await asyncio.sleep(generator.uniform(0.0, 0.01))
                finally:
                    slot.end()
        except (TimeoutError, SampleRejected):
            return

    async def run() -> None:
        slots = HostSlots(HostMemory(config), config)
        await asyncio.gather(*(ask(slots) for _ in range(200)))
        for origin in ("host", "other"):
            held = [await slots.wait(origin, 0.0) for _ in range(2)]
            assert slots.is_full(origin)
            with pytest.raises(SampleRejected):
                await slots.wait(origin, 0.0)
            for slot in held:
                slot.end()
                slot.end()
            assert not slots.is_full(origin)

    asyncio.run(run())


def test_a_turn_that_is_over_ends_only_once() -> None:
    config = FetchConfig(connections_per_host=1)
    slots = HostSlots(HostMemory(config), config)
    first = slots.begin("host")
    first.end()
    second = slots.begin("host")
    first.end()
    assert slots.is_full("host")
    assert isinstance(second, Slot)


def download_rows(config: FetchConfig, *urls: str) -> list[RejectReason | None]:
    """Returns what becomes of rows that wait in a queue, as in the fetch stage."""
    found: list[RejectReason | None] = [None] * len(urls)

    async def work(queues: HostQueues, downloader: Downloader) -> None:
        while (taken := await queues.take()) is not None:
            try:
                body = await downloader.download(urls[taken[1]], slot=taken[0])
                downloader.release(body)
            except SampleRejected as rejected:
                found[taken[1]] = rejected.reason

    async def run() -> None:
        memory = HostMemory(config)
        slots = HostSlots(memory, config)
        queues = HostQueues([(origin_of(url), row) for row, url in enumerate(urls)], slots)
        downloader = Downloader(config, memory, slots=slots)
        await asyncio.gather(*(work(queues, downloader) for _ in range(10)))
        await downloader.close()

    asyncio.run(run())
    return found


@pytest.mark.slow
def test_the_first_requests_to_a_host_keep_the_pace_that_it_asks_for(web_server: WebServer) -> None:
    began: list[float] = []

    async def note(request: Any, writer: asyncio.StreamWriter) -> None:
        began.append(time.monotonic())
        writer.write(response(IMAGE))

    web_server.serve("/robots.txt", b"User-agent: *\nCrawl-delay: 0.5\n")
    urls = [web_server.route(f"/{number}", note) for number in range(4)]
    config = settings(web_server, respects_robots=True, respects_tdm=True)
    before = time.monotonic()
    assert download_rows(config, *urls) == [None] * 4
    # Not from one to the next: on a busy machine one may be noted late, and the next at once.
    assert all(at - before > 0.5 * number - 0.01 for number, at in enumerate(sorted(began)))


@pytest.mark.parametrize("rules", [b"", b"User-agent: *\nDisallow: /"])
def test_a_host_whose_rules_are_not_known_gets_one_request_and_then_its_share(
    rules: bytes, web_server: WebServer
) -> None:
    web_server.serve("/robots.txt", rules)
    urls = [web_server.serve(f"/{number}", IMAGE) for number in range(30)]
    config = settings(web_server, respects_robots=True, respects_tdm=True)
    expected = RejectReason.ROBOTS_DISALLOWED if rules else None
    assert download_rows(config, *urls) == [expected] * 30
    assert web_server.paths()[:1] == ["/robots.txt"]


@pytest.mark.slow
def test_a_redirect_asks_a_host_for_its_rules_in_its_turn_there(web_server: WebServer) -> None:
    busy = web_server.url("/", OTHER_HOST)
    url = web_server.redirect("/start", web_server.url("/image", OTHER_HOST))
    config = settings(web_server, connections_per_host=1, timeout_seconds=4.0, respects_robots=True)

    async def ask() -> None:
        memory = HostMemory(config)
        slots = HostSlots(memory, config)
        slots.begin(origin_of(busy))
        downloader = Downloader(config, memory, slots=slots)
        with pytest.raises(SampleRejected, match="no free slot at"):
            await downloader.download(url)
        await downloader.close()

    asyncio.run(ask())
    assert web_server.paths(OTHER_HOST) == []
