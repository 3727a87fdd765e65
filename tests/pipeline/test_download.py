import asyncio
import gzip
import socket
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.config import FetchConfig
from pipeline.download import Downloader
from pipeline.politeness import HostMemory
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import (
    ALLOWED_HOST,
    FORBIDDEN_HOST,
    WebServer,
    response,
    unused_port,
)

IMAGE = b"\xff\xd8\xff" + bytes(range(256)) * 8
"""Bytes that begin as a JPEG does; nothing here decodes them."""

OK = b"HTTP/1.1 200 OK\r\n"


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
        "timeout_seconds": 5.0,
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


R = RejectReason
Route = Callable[[WebServer], str]


def gzip_bomb(server: WebServer) -> str:
    body = gzip.compress(b"\xff\xd8\xff" + bytes(50_000_000))
    return server.serve("/bomb", body, {"Content-Encoding": "gzip"})


def chunked(*chunks: bytes) -> bytes:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def redirect_loop(server: WebServer) -> str:
    server.redirect("/loop-b", "/loop-a")
    return server.redirect("/loop-a", "/loop-b")


HOSTILE: dict[str, tuple[RejectReason, Route]] = {
    # addresses
    "loopback": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "127.0.0.1")),
    "other loopback": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", FORBIDDEN_HOST)),
    "decimal": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "2130706435")),
    "octal": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "0177.0.0.03")),
    "hexadecimal": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "0x7f000003")),
    "hexadecimal parts": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "0x7f.0.0.0x3")),
    "short": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "127.3")),
    "zero": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "0.0.0.0")),
    "zero alone": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "0")),
    "full width digits": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "１27.0.0.3")),  # noqa: RUF001
    "localhost": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "localhost")),
    "address beyond all": (R.INVALID_URL, lambda s: s.url("/x", "99999999999")),
    "ten": (R.FORBIDDEN_ADDRESS, lambda s: "http://10.0.0.1/x"),
    "one seven two": (R.FORBIDDEN_ADDRESS, lambda s: "http://172.16.3.4/x"),
    "one nine two": (R.FORBIDDEN_ADDRESS, lambda s: "http://192.168.1.1/x"),
    "shared": (R.FORBIDDEN_ADDRESS, lambda s: "http://100.64.0.1/x"),
    "metadata": (R.FORBIDDEN_ADDRESS, lambda s: "http://169.254.169.254/latest/meta-data/"),
    "metadata of Azure": (R.FORBIDDEN_ADDRESS, lambda s: "http://168.63.129.16/x"),
    "multicast": (R.FORBIDDEN_ADDRESS, lambda s: "http://224.0.0.1/x"),
    "broadcast": (R.FORBIDDEN_ADDRESS, lambda s: "http://255.255.255.255/x"),
    "documentation": (R.FORBIDDEN_ADDRESS, lambda s: "http://192.0.2.1/x"),
    "IPv6 loopback": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "[::1]")),
    "IPv6 unspecified": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "[::]")),
    "IPv6 link-local": (R.FORBIDDEN_ADDRESS, lambda s: "http://[fe80::1]/x"),
    "IPv6 unique local": (R.FORBIDDEN_ADDRESS, lambda s: "http://[fd00:ec2::254]/x"),
    "IPv6 multicast": (R.FORBIDDEN_ADDRESS, lambda s: "http://[ff02::1]/x"),
    "IPv4-mapped": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "[::ffff:127.0.0.3]")),
    "IPv4-compatible": (R.FORBIDDEN_ADDRESS, lambda s: s.url("/x", "[::127.0.0.3]")),
    "NAT64": (R.FORBIDDEN_ADDRESS, lambda s: "http://[64:ff9b::7f00:3]/x"),
    "6to4": (R.FORBIDDEN_ADDRESS, lambda s: "http://[2002:7f00:3::1]/x"),
    "redirect to a forbidden address": (
        R.FORBIDDEN_ADDRESS,
        lambda s: s.redirect("/r", s.url("/x", FORBIDDEN_HOST)),
    ),
    "redirect to metadata": (
        R.FORBIDDEN_ADDRESS,
        lambda s: s.redirect("/r", "http://169.254.169.254/"),
    ),
    "redirect to localhost": (
        R.FORBIDDEN_ADDRESS,
        lambda s: s.redirect("/r", s.url("/x", "localhost")),
    ),
    # schemes, ports, URLs
    "file": (R.FORBIDDEN_SCHEME, lambda s: "file:///etc/passwd"),
    "ftp": (R.FORBIDDEN_SCHEME, lambda s: "ftp://192.0.2.1/x"),
    "gopher": (R.FORBIDDEN_SCHEME, lambda s: "gopher://192.0.2.1/x"),
    "data": (R.FORBIDDEN_SCHEME, lambda s: "data:image/png;base64,AAAA"),
    "javascript": (R.FORBIDDEN_SCHEME, lambda s: "javascript:alert(1)"),
    "no scheme": (R.FORBIDDEN_SCHEME, lambda s: "//example.org/x"),
    "empty": (R.FORBIDDEN_SCHEME, lambda s: ""),
    "redirect to a file": (R.FORBIDDEN_SCHEME, lambda s: s.redirect("/r", "file:///etc/passwd")),
    "redirect to ftp": (R.FORBIDDEN_SCHEME, lambda s: s.redirect("/r", "ftp://192.0.2.1/x")),
    "ssh port": (R.FORBIDDEN_PORT, lambda s: f"http://{ALLOWED_HOST}:22/"),
    "redis port": (R.FORBIDDEN_PORT, lambda s: f"http://{ALLOWED_HOST}:6379/"),
    "redirect to a port": (
        R.FORBIDDEN_PORT,
        lambda s: s.redirect("/r", f"http://{ALLOWED_HOST}:25/"),
    ),
    "no host": (R.INVALID_URL, lambda s: "http:///x"),
    "port out of range": (R.INVALID_URL, lambda s: "http://example.org:99999/"),
    "bad brackets": (R.INVALID_URL, lambda s: "http://[::1/x"),
    # names
    "unknown name": (R.DNS_FAILED, lambda s: f"http://nowhere.invalid:{s.port}/x"),
    "label too long": (R.DNS_FAILED, lambda s: f"http://{'a' * 70}.invalid/x"),
    # redirects
    "redirect loop": (R.BAD_REDIRECT, redirect_loop),
    "redirect to itself": (R.BAD_REDIRECT, lambda s: s.redirect("/self", "/self")),
    "redirect nowhere": (R.BAD_REDIRECT, lambda s: s.serve("/r", b"", status=302)),
    "redirect to garbage": (R.BAD_REDIRECT, lambda s: s.redirect("/r", "http://[::1/")),
    # status
    "not found": (R.HTTP_STATUS, lambda s: s.serve("/x", b"", status=404)),
    "gone": (R.HTTP_STATUS, lambda s: s.serve("/x", IMAGE, status=410)),
    "forbidden": (R.HTTP_STATUS, lambda s: s.serve("/x", IMAGE, status=403)),
    "no content": (R.HTTP_STATUS, lambda s: s.raw("/x", b"HTTP/1.1 204 No\r\n\r\n")),
    "partial content": (R.HTTP_STATUS, lambda s: s.serve("/x", IMAGE, status=206)),
    "not modified": (R.HTTP_STATUS, lambda s: s.raw("/x", b"HTTP/1.1 304 No\r\n\r\n")),
    "server error": (R.SERVER_ERROR, lambda s: s.serve("/x", b"", status=500)),
    "unavailable": (R.SERVER_ERROR, lambda s: s.serve("/x", b"", status=503)),
    "too many requests": (R.RATE_LIMITED, lambda s: s.serve("/x", b"", status=429)),
    # broken answers
    "not HTTP": (R.BAD_RESPONSE, lambda s: s.raw("/x", b"220 mail.example ESMTP\r\n\r\n")),
    "binary garbage": (R.BAD_RESPONSE, lambda s: s.raw("/x", bytes(range(256)) + b"\r\n\r\n")),
    "closed at once": (R.INCOMPLETE_RESPONSE, lambda s: s.raw("/x", b"")),
    "closed in the headers": (R.INCOMPLETE_RESPONSE, lambda s: s.raw("/x", OK + b"Content-")),
    "closed in the body": (
        R.INCOMPLETE_RESPONSE,
        lambda s: s.raw("/x", OK + b"Content-Length: 5000\r\n\r\n" + IMAGE),
    ),
    "negative length": (
        R.BAD_RESPONSE,
        lambda s: s.raw("/x", OK + b"Content-Length: -5\r\n\r\n" + IMAGE),
    ),
    "two lengths": (
        R.BAD_RESPONSE,
        lambda s: s.raw("/x", OK + b"Content-Length: 5\r\nContent-Length: 9\r\n\r\n" + IMAGE),
    ),
    "length in words": (
        R.BAD_RESPONSE,
        lambda s: s.raw("/x", OK + b"Content-Length: many\r\n\r\n" + IMAGE),
    ),
    "endless header": (R.BAD_RESPONSE, lambda s: s.endless("/x", OK + b"X: ", b"x" * 1000)),
    "endless headers": (R.BAD_RESPONSE, lambda s: s.endless("/x", OK, b"X: y\r\n" * 100)),
    "chunks cut": (R.INCOMPLETE_RESPONSE, lambda s: s.raw("/x", chunked(IMAGE))),
    "chunks of garbage": (
        R.BAD_RESPONSE,
        lambda s: s.raw("/x", chunked(IMAGE) + b"zzzz\r\nnot a chunk\r\n"),
    ),
    "endless chunks": (
        R.TOO_MANY_BYTES,
        lambda s: s.endless("/x", chunked(IMAGE), b"3e8\r\n" + bytes(1000) + b"\r\n"),
    ),
    "unknown encoding": (
        R.BAD_RESPONSE,
        lambda s: s.serve("/x", IMAGE, {"Content-Encoding": "br"}),
    ),
    "broken gzip": (R.BAD_RESPONSE, lambda s: s.serve("/x", IMAGE, {"Content-Encoding": "gzip"})),
    "cut gzip": (
        R.INCOMPLETE_RESPONSE,
        lambda s: s.serve("/x", gzip.compress(IMAGE)[:-9], {"Content-Encoding": "gzip"}),
    ),
    # too much
    "long by its header": (
        R.TOO_MANY_BYTES,
        lambda s: s.hang("/x", OK + b"Content-Length: 99999999999\r\n\r\n"),
    ),
    "endless body": (R.TOO_MANY_BYTES, lambda s: s.endless("/x", OK + b"\r\n" + IMAGE, bytes(999))),
    "gzip bomb": (R.TOO_MANY_BYTES, gzip_bomb),
    "too long": (R.TOO_MANY_BYTES, lambda s: s.serve("/x", IMAGE + bytes(100_000))),
    # no image
    "empty body": (R.NOT_AN_IMAGE, lambda s: s.serve("/x", b"")),
    "page": (R.NOT_AN_IMAGE, lambda s: s.serve("/x", b"<html>" + b" " * 500)),
    "endless page": (R.NOT_AN_IMAGE, lambda s: s.endless("/x", OK + b"\r\n<html>", b" " * 100)),
    "page called image": (
        R.NOT_AN_IMAGE,
        lambda s: s.serve("/x", b"<html></html>", {"Content-Type": "image/jpeg"}),
    ),
    "SVG": (R.NOT_AN_IMAGE, lambda s: s.serve("/x", b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "PDF": (R.NOT_AN_IMAGE, lambda s: s.serve("/x", b"%PDF-1.7 " + bytes(100))),
}


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
