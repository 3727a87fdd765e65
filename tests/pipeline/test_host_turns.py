"""Redirected requests are counted and paced like first ones, and nobody waits for ever."""

import asyncio
import random
import time
from typing import Any

import pytest

from pipeline.config import FetchConfig
from pipeline.download import Downloader
from pipeline.host_turns import HostTurns, Turn
from pipeline.politeness import HostMemory
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import ALLOWED_HOST, WebServer, response

IMAGE = b"\xff\xd8\xff" + bytes(200)
OTHER_HOST = "127.0.0.3"


def settings(server: WebServer, **more: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32", f"{OTHER_HOST}/32"),
        "allow_ports": (server.port,),
        "timeout_seconds": 5.0,
        "retries": 0,
        "respects_robots": False,
        "respects_tdm": False,
    }
    return FetchConfig(**{**values, **more})


def download(config: FetchConfig, *urls: str) -> list[RejectReason | None]:
    """Returns why each URL was not taken, None where it was; all asked at once."""

    async def ask_one(downloader: Downloader, url: str) -> RejectReason | None:
        try:
            downloader.release(await downloader.download(url))
        except SampleRejected as rejected:
            return rejected.reason
        return None

    async def ask() -> list[RejectReason | None]:
        downloader = Downloader(config, HostMemory(config))
        try:
            return await asyncio.gather(*(ask_one(downloader, url) for url in urls))
        finally:
            await downloader.close()

    return asyncio.run(ask())


def test_each_redirect_waits_for_the_rate_of_its_host(web_server: WebServer) -> None:
    web_server.serve("/0", IMAGE)
    for number in range(1, 4):
        web_server.redirect(f"/{number}", f"/{number - 1}")
    config = settings(web_server, requests_per_second_per_host=20.0)
    before = time.monotonic()
    assert download(config, web_server.url("/3")) == [None]
    assert time.monotonic() - before >= 3 / 20 - 0.001


def test_redirects_from_many_hosts_do_not_gather_at_one(web_server: WebServer) -> None:
    active = most = 0

    async def count(request: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.02)
        active -= 1
        writer.write(response(IMAGE))

    web_server.route("/image", count)
    urls = [
        web_server.redirect(f"/{number}", web_server.url("/image", OTHER_HOST))
        for number in range(20)
    ]
    direct = [web_server.url("/image", OTHER_HOST)] * 5
    assert download(settings(web_server, connections_per_host=3), *urls, *direct) == [None] * 25
    assert most == 3


def test_hosts_that_redirect_to_each_other_do_not_wait_in_a_ring(web_server: WebServer) -> None:
    web_server.serve("/image", IMAGE)
    web_server.redirect("/to-other", web_server.url("/image", OTHER_HOST))
    web_server.redirect("/to-allowed", web_server.url("/image", ALLOWED_HOST))
    urls = [web_server.url("/to-other")] * 5 + [web_server.url("/to-allowed", OTHER_HOST)] * 5
    assert download(settings(web_server, connections_per_host=1), *urls) == [None] * 10


def test_a_redirect_to_a_host_that_is_busy_too_long_can_be_asked_again_later(
    web_server: WebServer,
) -> None:
    config = settings(web_server, requests_per_second_per_host=0.1, timeout_seconds=1.0)
    web_server.serve("/image", IMAGE)
    url = web_server.redirect("/start", "/image")
    assert download(config, url) == [RejectReason.RATE_LIMITED]


def test_every_turn_is_given_back_whatever_ends_the_waiting() -> None:
    config = FetchConfig(connections_per_host=2)
    generator = random.Random(0)

    async def ask(turns: HostTurns) -> None:
        try:
            async with asyncio.timeout(generator.uniform(0.0, 0.02)):
                turn = await turns.wait("host", generator.uniform(0.0, 0.02))
                try:
                    await asyncio.sleep(generator.uniform(0.0, 0.01))
                    await turn.move(generator.choice(["host", "other"]), 0.01)
                    await asyncio.sleep(generator.uniform(0.0, 0.01))
                finally:
                    turn.end()
        except (TimeoutError, SampleRejected):
            return

    async def run() -> None:
        turns = HostTurns(HostMemory(config), config)
        await asyncio.gather(*(ask(turns) for _ in range(200)))
        for origin in ("host", "other"):
            held = [await turns.wait(origin, 0.0) for _ in range(2)]
            assert turns.is_full(origin)
            with pytest.raises(SampleRejected):
                await turns.wait(origin, 0.0)
            for turn in held:
                turn.end()
                turn.end()
            assert not turns.is_full(origin)

    asyncio.run(run())


def test_a_turn_that_is_over_ends_only_once() -> None:
    config = FetchConfig(connections_per_host=1)
    turns = HostTurns(HostMemory(config), config)
    first = turns.begin("host")
    first.end()
    second = turns.begin("host")
    first.end()
    assert turns.is_full("host")
    assert isinstance(second, Turn)
