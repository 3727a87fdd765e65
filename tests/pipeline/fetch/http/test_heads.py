"""Answers of servers that err in what is no part of the image: it is taken, as curl takes it."""

import asyncio
import gzip

from aiohttp.http_exceptions import BadHttpMessage
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.http.heads import MAX_HEAD_BYTES, PlainHead
from schemas.errors import RejectReason
from tests.hostile_urls import IMAGE
from tests.pipeline.fetch.http.test_download import download, settings
from tests.web_server import Request, WebServer, response

R = RejectReason
LENGTH = b"%d" % len(IMAGE)


def answer(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK", body: bytes = IMAGE) -> bytes:
    return b"\r\n".join([first, *lines, b"Content-Length: %d" % len(body), b"", body])


def unsized(*lines: bytes, body: bytes = IMAGE, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([first, *lines, b"", body])


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(IMAGE), IMAGE)

TAKEN = {
    "a policy of 9 KB": answer(b"Content-Security-Policy: " + b"a" * 9_000),
    "a policy of 30 KB": answer(b"Content-Security-Policy: " + b"a" * 30_000),
    "fields of 64 KiB": answer(b"X-A: " + b"a" * 60_000, b"X-B: " + b"b" * 5_000),
    "many fields": answer(*(b"X-%d: y" % number for number in range(1_000))),
    "many cookies": answer(*(b"Set-Cookie: a%d=y; \x01" % number for number in range(200))),
    "a long reason": answer(first=b"HTTP/1.1 200 " + b"O" * 9_000),
    "no reason": answer(first=b"HTTP/1.1 200"),
    "a reason in Latin-1": answer(first=b"HTTP/1.1 200 D\xe9j\xe0"),
    "HTTP/1.0": answer(first=b"HTTP/1.0 200 OK"),
    "HTTP/1.0 without a length": unsized(first=b"HTTP/1.0 200 OK"),
    "HTTP/2 in words": answer(first=b"HTTP/2 200"),
    "small letters": answer(first=b"http/1.1 200 ok"),
    "line ends first": b"\r\n\r\n" + answer(),
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: " + LENGTH + b"\n\n" + IMAGE,
    "a space before the colon": answer(b"X-A : b"),
    "no colon": answer(b"this is no field"),
    "no name": answer(b": b"),
    "a space in a name": answer(b"X A: b"),
    "signs in a name": answer(b"X@A(b): c"),
    "a name beyond ASCII": answer("X-\u00e9: c".encode()),
    "a value in Latin-1": answer(b"X-A: caf\xe9"),
    "a control character": answer(b"X-A: a\x01\x00\x7fb"),
    "a lone carriage return": answer(b"X-A: a\rb"),
    "a field on two lines": answer(b"X-A: a", b"  b"),
    "a field that begins with a space": answer(b"  X-A: a"),
    "no value": answer(b"X-A:"),
    "one length twice": answer(b"Content-Length: " + LENGTH),
    "one length in a list": unsized(b"Content-Length: %s, %s" % (LENGTH, LENGTH)),
    "a length with a sign": unsized(b"Content-Length: +" + LENGTH),
    "an empty length": unsized(b"Content-Length: "),
    "more than its length": answer() + b"and more",
    "a length and chunks": unsized(
        b"Content-Length: 5", b"Transfer-Encoding: chunked", body=CHUNKED
    ),
    "chunked twice": unsized(*[b"Transfer-Encoding: Chunked"] * 2, body=CHUNKED),
    "coded as it is": answer(b"Transfer-Encoding: identity"),
    "gzip that is not": answer(b"Content-Encoding: gzip"),
    "deflate that is not": answer(b"Content-Encoding: deflate"),
    "brotli that is not": answer(b"Content-Encoding: br"),
    "encoded as UTF-8": answer(b"Content-Encoding: utf-8"),
    "encoded twice as nothing": answer(*[b"Content-Encoding: identity"] * 2),
    "gzip after all": answer(b"Content-Encoding: utf-8, gzip", body=gzip.compress(IMAGE)),
    "gzip twice, in words": answer(b"Content-Encoding: gzip,gzip", body=gzip.compress(IMAGE)),
    "line ends of both kinds": b"HTTP/1.0 200 OK\nServer: x\r\nContent-Length: %s\r\nA: b;\n\n%s"
    % (LENGTH, IMAGE),
    "created": answer(first=b"HTTP/1.1 201 Created"),
    "accepted": answer(first=b"HTTP/1.1 202 Accepted"),
    "of a proxy": answer(first=b"HTTP/1.1 203 Non-Authoritative"),
    "a part that is all": answer(
        b"Content-Range: bytes 0-%d/%s" % (len(IMAGE) - 1, LENGTH), first=b"HTTP/1.1 206 Partial"
    ),
    "hints first": b"HTTP/1.1 103 Early Hints\r\nLink: <\r\n\r\n" + answer(),
    "another protocol is offered": answer(b"Upgrade: h2,h2c", b"Connection: Upgrade, Keep-Alive"),
}

REFUSED = {
    "two lengths": (R.BAD_RESPONSE, answer(b"Content-Length: 5")),
    "another coding": (
        R.BAD_RESPONSE,
        unsized(b"Transfer-Encoding: gzip, chunked", body=CHUNKED),
    ),
    "another protocol": (R.BAD_RESPONSE, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "another protocol, then an image": (R.BAD_RESPONSE, b"SSH-2.0\r\n\r\n" + answer()),
    "hints, then another protocol": (
        R.BAD_RESPONSE,
        b"HTTP/1.1 103 Early Hints\r\n\r\nSSH-2.0\r\n\r\n" + answer(),
    ),
    "no status": (R.BAD_RESPONSE, answer(first=b"HTTP/1.1 OK")),
    "a part": (
        R.HTTP_STATUS,
        answer(b"Content-Range: bytes 0-99/9999", first=b"HTTP/1.1 206 Partial"),
    ),
    "a head too long": (R.BAD_RESPONSE, answer(b"X: " + b"a" * MAX_HEAD_BYTES * 2)),
    "less than its length": (
        R.INCOMPLETE_RESPONSE,
        unsized(b"Content-Length: %d" % (len(IMAGE) + 1)),
    ),
    "brotli": (R.BAD_RESPONSE, answer(b"Content-Encoding: br", body=b"\x8b" + IMAGE)),
}


def test_an_image_is_taken_whatever_else_its_head_says(web_server: WebServer) -> None:
    urls = [web_server.raw(f"/{number}", TAKEN[name]) for number, name in enumerate(TAKEN)]
    found = dict(zip(TAKEN, download(settings(web_server), *urls), strict=True))
    assert {name: body for name, body in found.items() if body != IMAGE} == {}


def test_what_cannot_be_followed_is_refused(web_server: WebServer) -> None:
    urls = [web_server.raw(f"/{at}", REFUSED[name][1]) for at, name in enumerate(REFUSED)]
    found = dict(zip(REFUSED, download(settings(web_server), *urls), strict=True))
    assert found == {name: reason for name, (reason, _) in REFUSED.items()}


def test_opt_outs_hold_however_the_head_is_written(web_server: WebServer) -> None:
    lines = [b"x-ROBOTS-tag : noai", b"X-Robots-Tag: nofollow,\r\n noimageai", b"TDM-reservation:1"]
    heads = [answer(b"garbage", line) for line in lines]
    urls = [web_server.raw(f"/{number}", head) for number, head in enumerate(heads)]
    config = settings(web_server, respects_tdm=True)
    assert download(config, *urls) == [R.OPTED_OUT_BY_HEADER] * 2 + [R.TDM_RESERVED]


def test_a_head_may_come_in_any_pieces(web_server: WebServer) -> None:
    whole = b"\r\nHTTP/1.1 100 Continue\r\n\r\n" + TAKEN["a field on two lines"]

    async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
        for place in range(100):
            writer.write(whole[place : place + 1])
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(whole[100:])

    url = web_server.route("/x", drip)
    assert download(settings(web_server), url, url) == [IMAGE, IMAGE]


def test_a_connection_is_used_again_only_if_nothing_is_left_on_it(web_server: WebServer) -> None:
    plain, surplus = web_server.serve("/x", IMAGE), answer() + response(b"<html>not asked for")

    async def more(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(surplus)

    url = web_server.route("/y", more)
    assert download(settings(web_server), plain, plain, url, plain) == [IMAGE] * 4
    assert web_server.connections == 2


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: b"HTTP/1.1 200\n" + rest))
def test_any_head_is_plain_or_refused(head: bytes) -> None:
    try:
        plain = PlainHead(head).plain
    except BadHttpMessage:
        return
    lines = plain.split(b"\r\n")
    assert lines[-2:] == [b"", b""] and b"" not in lines[:-2]
    assert all(b": " in line and b"\n" not in line for line in lines[1:-2])
