import asyncio
import gzip
import socket
import time
import zlib
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.hostile_urls import HOSTILE, IMAGE, OK, Route, chunked
from tests.web_server import ALLOWED_HOST, FORBIDDEN_HOST, WebServer, response, unused_port


class TurningResolver(AbstractResolver):
    """Gives a name another address each time: DNS rebinding, without a name server."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Holds nothing."""


def settings(server: WebServer, **more: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (80, 443, server.port),
        "max_bytes": 100_000,
        "timeout_seconds": 60.0,
        "retries": 0,
        "host_failures": 0,
        "respects_robots": False,
        "respects_tdm": False,
    }
    return FetchConfig(**{**values, **more})


def download(
    config: FetchConfig,
    *urls: str,
    resolver: AbstractResolver | None = None,
    memory: HostMemory | None = None,
) -> list[bytes | RejectReason]:
    """Returns what became of each URL, asked one after the other."""

    async def ask() -> list[bytes | RejectReason]:
        downloader = Downloader(config, memory or HostMemory(config), resolver)
        found: list[bytes | RejectReason] = []
        try:
            for url in urls:
                try:
                    body = await downloader.download(url)
                    found.append(bytes(body))
                    downloader.release(body)
                except SampleRejected as rejected:
                    found.append(rejected.reason)
        finally:
            await downloader.close()
        return found

    return asyncio.run(ask())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_url_ends_in_its_reason_and_reaches_nothing_forbidden(
    name: str, web_server: WebServer
) -> None:
    reason, route = HOSTILE[name]
    url = route(web_server)
    assert download(settings(web_server), url) == [reason]
    assert web_server.paths(FORBIDDEN_HOST) == []


def test_there_are_at_least_sixty_hostile_cases() -> None:
    assert len(HOSTILE) >= 60


SLOW: dict[str, Route] = {
    "silence": lambda s: s.hang("/x"),
    "silence in the headers": lambda s: s.hang("/x", OK + b"X-A: "),
    "silence in the body": lambda s: s.hang("/x", OK + b"Content-Length: 999\r\n\r\n\xff\xd8\xff"),
    "drip of headers": lambda s: s.drip("/x", OK + b"X: " + b"y" * 9999, 0.02),
    "drip of the body": lambda s: s.drip("/x", response(IMAGE), 0.02),
    "endless informational answers": lambda s: s.endless(
        "/x", b"", b"HTTP/1.1 100 Continue\r\n\r\n"
    ),
    "drip of redirects": lambda s: s.redirect("/x", s.hang("/y")),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_answer_ends_at_the_deadline(name: str, web_server: WebServer) -> None:
    url = SLOW[name](web_server)
    config = settings(web_server, timeout_seconds=0.4)
    assert download(config, url) == [RejectReason.TIMED_OUT]


def test_a_dead_port_fails_to_connect(web_server: WebServer) -> None:
    port = unused_port()
    config = settings(web_server, allow_ports=(port,))
    assert download(config, f"http://{ALLOWED_HOST}:{port}/") == [RejectReason.CONNECT_FAILED]


@pytest.mark.parametrize(
    "answer",
    [
        response(IMAGE),
        OK + b"\r\n" + IMAGE,
        chunked(IMAGE[:10], IMAGE[10:]) + b"0\r\n\r\n",
        response(gzip.compress(IMAGE), {"Content-Encoding": "gzip"}),
        response(zlib.compress(IMAGE), {"Content-Encoding": "deflate"}),
        response(IMAGE, {"Content-Type": "text/html"}),
        b"HTTP/1.1 100 Continue\r\n\r\n" + response(IMAGE),
    ],
)
def test_an_answer_is_read_whatever_its_framing(answer: bytes, web_server: WebServer) -> None:
    assert download(settings(web_server), web_server.raw("/x", answer)) == [IMAGE]


def test_endless_trailing_bytes_are_not_read(web_server: WebServer) -> None:
    url = web_server.endless("/x", response(IMAGE), b"trailing bytes that belong to nothing" * 99)
    [found] = download(settings(web_server), url)
    assert found in (IMAGE, RejectReason.BAD_RESPONSE)


def test_endless_bytes_after_the_end_of_packed_data_are_not_read(web_server: WebServer) -> None:
    packed = gzip.compress(IMAGE)
    start = OK + b"Content-Encoding: gzip\r\n\r\n" + packed
    url = web_server.endless("/x", start, bytes(100_000))
    again = web_server.serve("/y", IMAGE)
    assert download(settings(web_server), url, again) == [IMAGE, IMAGE]


def test_redirects_are_followed_up_to_their_limit(web_server: WebServer) -> None:
    web_server.serve("/0", IMAGE)
    for number in range(1, 7):
        web_server.redirect(f"/{number}", f"/{number - 1}", 301 + number % 2 * 6)
    config = settings(web_server, max_redirects=5)
    found = download(config, web_server.url("/5"), web_server.url("/6"))
    assert found == [IMAGE, RejectReason.BAD_REDIRECT]


def test_a_name_that_changes_its_address_is_judged_at_each_connection(
    web_server: WebServer,
) -> None:
    web_server.serve("/x", IMAGE, {"Connection": "close"})
    resolver = TurningResolver([ALLOWED_HOST, FORBIDDEN_HOST])
    url = web_server.url("/x", "turning.test")

    async def ask_apart() -> list[bytes | RejectReason]:
        config = settings(web_server)
        found: list[bytes | RejectReason] = []
        downloader = Downloader(config, HostMemory(config), resolver)
        for _ in range(2):
            try:
                found.append(bytes(await downloader.download(url, is_last_of_host=True)))
            except SampleRejected as rejected:
                found.append(rejected.reason)
        await downloader.close()
        return found

    assert asyncio.run(ask_apart()) == [IMAGE, RejectReason.FORBIDDEN_ADDRESS]
    assert web_server.paths(FORBIDDEN_HOST) == []


@pytest.mark.slow
def test_a_passing_failure_is_asked_again_and_a_lasting_one_is_not(web_server: WebServer) -> None:
    web_server.sequence("/passing", [response(b"", status=503), response(IMAGE)])
    web_server.serve("/lasting", b"", status=404)
    config = settings(web_server, retries=2)
    found = download(config, web_server.url("/passing"), web_server.url("/lasting"))
    assert found == [IMAGE, RejectReason.HTTP_STATUS]
    assert web_server.paths() == ["/passing", "/passing", "/lasting"]


def test_a_host_that_asks_to_wait_is_left_alone(web_server: WebServer) -> None:
    web_server.serve("/busy", b"", {"Retry-After": "3600"}, status=429)
    web_server.serve("/x", IMAGE)
    config = settings(web_server, retries=2)
    found = download(config, web_server.url("/busy"), web_server.url("/x"))
    assert found == [RejectReason.RATE_LIMITED] * 2
    assert web_server.paths() == ["/busy"]


@pytest.mark.slow
def test_a_short_wait_is_waited(web_server: WebServer) -> None:
    busy = response(b"", {"Retry-After": "1"}, status=429)
    url = web_server.sequence("/busy", [busy, response(IMAGE)])
    before = time.monotonic()
    assert download(settings(web_server, retries=1), url) == [IMAGE]
    assert time.monotonic() - before >= 0.99


def test_a_dead_host_is_given_up_after_some_failures(web_server: WebServer) -> None:
    port = unused_port()
    config = settings(web_server, allow_ports=(port, web_server.port), host_failures=3)
    dead = f"http://{ALLOWED_HOST}:{port}/"
    found = download(config, *[dead] * 5, web_server.serve("/x", IMAGE))
    assert found == [RejectReason.CONNECT_FAILED] * 3 + [RejectReason.HOST_UNAVAILABLE] * 2 + [
        IMAGE
    ]


def test_a_redirect_to_a_dead_host_does_not_revive_it(web_server: WebServer) -> None:
    port = unused_port()
    config = settings(web_server, allow_ports=(port, web_server.port), host_failures=3)
    dead = f"http://{ALLOWED_HOST}:{port}/"
    to_dead = [
        web_server.serve(f"/{number}", b"", {"Location": dead}, status=302) for number in range(7)
    ]
    found = download(config, *to_dead)
    assert found == [RejectReason.CONNECT_FAILED] * 3 + [RejectReason.HOST_UNAVAILABLE] * 4


def test_connections_are_used_again(web_server: WebServer) -> None:
    url = web_server.serve("/x", IMAGE)
    assert download(settings(web_server), url, url, url) == [IMAGE] * 3
    assert web_server.connections == 1


def test_no_proxy_of_the_environment_is_used(
    web_server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", web_server.url("/proxy", FORBIDDEN_HOST))
    assert download(settings(web_server), web_server.serve("/x", IMAGE)) == [IMAGE]
    assert web_server.paths(FORBIDDEN_HOST) == []
