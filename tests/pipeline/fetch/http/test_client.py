"""Whatever a server answers, it costs its sample and nothing more."""

import asyncio
import random
from typing import Any

import pytest

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.hostile_urls import IMAGE
from tests.web_server import ALLOWED_HOST, WebServer, response

NAMES = (
    b"Retry-After",
    b"Location",
    b"Content-Length",
    b"Content-Type",
    b"Content-Encoding",
    b"TDM-Reservation",
    b"X-Robots-Tag",
    b"Transfer-Encoding",
    b"Connection",
    b"Keep-Alive",
    b"Set-Cookie",
    b"Upgrade",
    b"Link",
)
VALUES = (
    b"",
    b"Wed, 21 Oct 99999999999 07:28:00 GMT",
    b"\xc2\xb2",
    b"http://][@",
    b"http://[:x]/",
    b"//[",
    b"http://a:b@c:99999/",
    b"99999999999999999999",
    b"-1",
    b"\xff\xfe",
    b"image/\xe9; charset=\xff",
    b"gzip, gzip",
    b"deflate",
    b"identity, chunked",
    b"close, keep-alive",
    b"timeout=99999999999999999999",
    b"a=b; expires=Wed, 99 Xxx 99999; Max-Age=1e999",
    b"<http://][@>; rel=x; rel*=UTF-8''%zz",
    b"noai: : :",
    b"max-snippet:" * 50,
    b"unavailable_after: Wed, 21 Oct 99999 07:28",
    b"x" * 7000,
)
STATUS = (200, 200, 200, 204, 206, 301, 302, 307, 404, 429, 429, 500, 503, 503, 103, 999)


def settings(server: WebServer, **more: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (server.port,),
        "timeout_seconds": 2.0,
        "retries": 0,
        "host_failures": 0,
        "respects_robots": False,
        "respects_tdm": False,
    }
    return FetchConfig(**{**values, **more})


def malformed_answer(generator: random.Random) -> bytes:
    """Returns an answer with up to four headers that fit neither each other nor the rules."""
    headers = [
        generator.choice(NAMES) + b": " + generator.choice(VALUES)
        for _ in range(generator.randint(1, 4))
    ]
    if generator.random() < 0.5:
        headers.append(b"Content-Length: %d" % len(IMAGE))
    status = b"HTTP/1.1 %d %s" % (generator.choice(STATUS), generator.choice([b"OK", b"\xff"]))
    return b"\r\n".join([status, *headers, b"", IMAGE])


def outcomes(config: FetchConfig, urls: list[str]) -> list[str]:
    """Returns what became of each URL, each asked as if its host were new, eight at once."""

    async def ask_one(url: str, room: asyncio.Semaphore) -> str:
        async with room:
            downloader = Downloader(config, HostMemory(config))
            try:
                downloader.release(await downloader.download(url))
            except SampleRejected as rejected:
                rejected.detail.encode()  # it is stored as UTF-8
                return str(rejected.reason.value)
            finally:
                await downloader.close()
            return "kept"

    async def ask() -> list[str]:
        room = asyncio.Semaphore(8)
        return await asyncio.gather(*(ask_one(url, room) for url in urls))

    return asyncio.run(ask())


def test_four_hundred_malformed_answers_cost_their_samples_only(web_server: WebServer) -> None:
    generator = random.Random(0)
    urls = [web_server.raw(f"/{number}", malformed_answer(generator)) for number in range(400)]
    found = outcomes(settings(web_server), urls)
    assert {"kept", "rate_limited", "server_error", "bad_redirect", "bad_response"} <= set(found)


def test_malformed_answers_to_robots_txt_and_tdmrep_cost_no_more(web_server: WebServer) -> None:
    generator = random.Random(1)
    url = web_server.serve("/image", IMAGE)
    config = settings(web_server, respects_robots=True, respects_tdm=True)
    for _ in range(60):
        web_server.raw("/robots.txt", malformed_answer(generator))
        web_server.raw("/.well-known/tdmrep.json", malformed_answer(generator))
        assert outcomes(config, [url]) != []


def hold_the_buffer(
    server: WebServer, timeout_seconds: float, held_seconds: float
) -> tuple[RejectReason | None, int]:
    """Returns what becomes of an image while a decoder keeps all room for a time, and failures."""
    config = settings(server, timeout_seconds=timeout_seconds, max_buffered_bytes=len(IMAGE) + 10)
    first, second = server.serve("/first", IMAGE), server.serve("/second", IMAGE)
    memory = HostMemory(config)

    async def ask() -> RejectReason | None:
        downloader = Downloader(config, memory)
        body = await downloader.download(first)
        asyncio.get_running_loop().call_later(held_seconds, downloader.release, body)
        try:
            downloader.release(await downloader.download(second))
        except SampleRejected as rejected:
            return rejected.reason
        finally:
            await downloader.close()
        return None

    found = asyncio.run(ask())
    return found, memory.host(first.removesuffix("/first")).failures


@pytest.mark.slow
def test_waiting_for_our_decoders_takes_no_time_from_an_image(web_server: WebServer) -> None:
    assert hold_the_buffer(web_server, timeout_seconds=3.0, held_seconds=4.0) == (None, 0)


def test_decoders_that_make_no_room_are_no_fault_of_a_host(
    web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fetch.http.client.MAX_ROOM_SECONDS", 0.2)
    found = hold_the_buffer(web_server, timeout_seconds=60.0, held_seconds=60.0)
    assert found == (RejectReason.RATE_LIMITED, 0)


def test_a_connection_that_was_asked_to_be_closed_is_not_used_again(web_server: WebServer) -> None:
    async def answer_and_close_late(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(response(IMAGE))
        await asyncio.sleep(0.3)

    first = web_server.route("/first", answer_and_close_late)
    second = web_server.serve("/second", IMAGE)

    async def ask() -> bytes:
        config = settings(web_server, timeout_seconds=60.0)
        downloader = Downloader(config, HostMemory(config))
        try:
            # Of several: a request that is lost on a used connection is sent once more.
            together = [downloader.download(first, is_last_of_host=True) for _ in range(3)]
            assert await asyncio.gather(*together) == [IMAGE] * 3
            return bytes(await downloader.download(second))
        finally:
            await downloader.close()

    assert asyncio.run(ask()) == IMAGE
    asked = [request for request in web_server.requests if request.path == "/first"]
    assert [request.headers.get("connection") for request in asked] == ["close"] * 3
