"""URLs that lead nowhere good, and the reason that each must end in."""

import gzip
from collections.abc import Callable

from schemas.errors import RejectReason
from tests.web_server import ALLOWED_HOST, FORBIDDEN_HOST, WebServer

IMAGE = b"\xff\xd8\xff" + bytes(range(256)) * 8
"""Bytes that begin as a JPEG does; nothing here decodes them."""

OK = b"HTTP/1.1 200 OK\r\n"

R = RejectReason
Route = Callable[[WebServer], str]


def gzip_bomb(server: WebServer) -> str:
    body = gzip.compress(b"\xff\xd8\xff" + bytes(50_000_000))
    return server.serve("/bomb", body, {"Content-Encoding": "gzip"})


def chunked(*chunks: bytes) -> bytes:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def endless_empty_blocks(server: WebServer) -> str:
    start = OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10]
    return server.endless("/x", start, b"\0\0\0\xff\xff" * 2000)


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
    "brackets": (R.INVALID_URL, lambda s: "http://][@"),
    "no address in brackets": (R.INVALID_URL, lambda s: "http://[:x]/"),
    # names
    "unknown name": (R.DNS_FAILED, lambda s: f"http://nowhere.invalid:{s.port}/x"),
    "label too long": (R.DNS_FAILED, lambda s: f"http://{'a' * 70}.invalid/x"),
    # redirects
    "redirect loop": (R.BAD_REDIRECT, redirect_loop),
    "redirect to itself": (R.BAD_REDIRECT, lambda s: s.redirect("/self", "/self")),
    "redirect nowhere": (R.BAD_REDIRECT, lambda s: s.serve("/r", b"", status=302)),
    "redirect to garbage": (R.BAD_REDIRECT, lambda s: s.redirect("/r", "http://[::1/")),
    "redirect to brackets": (R.BAD_REDIRECT, lambda s: s.redirect("/r", "http://][@")),
    "redirect to no address": (R.BAD_REDIRECT, lambda s: s.redirect("/r", "http://[:x]/")),
    "redirect to bytes": (
        R.BAD_REDIRECT,
        lambda s: s.raw("/r", b"HTTP/1.1 302 x\r\nLocation: http://\xff\xfe/\r\n\r\n"),
    ),
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
    "wait beyond all calendars": (
        R.RATE_LIMITED,
        lambda s: s.serve(
            "/x", b"", {"Retry-After": "Wed, 21 Oct 99999999999 07:28:00 GMT"}, status=429
        ),
    ),
    "wait of no number": (
        R.SERVER_ERROR,
        lambda s: s.serve("/x", b"", {"Retry-After": "\u00b2"}, status=503),
    ),
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
        lambda s: s.serve("/x", b"\x8b" + IMAGE, {"Content-Encoding": "br"}),
    ),
    "broken gzip": (
        R.BAD_RESPONSE,
        lambda s: s.serve("/x", b"\x1f\x8b" + IMAGE, {"Content-Encoding": "gzip"}),
    ),
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
    "endless packed data that is empty": (R.TOO_MANY_BYTES, endless_empty_blocks),
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
