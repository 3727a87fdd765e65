"""URLs as they were written, taken apart once: what is judged is what is asked for.

A server may tell `%2F` from `/`, and a signature holds for one spelling only. So path and query go
out as they stand, but for what no request can carry: spaces, control characters and all that is
not ASCII are escaped. Steps such as `/../` are taken before asking, as curl and browsers do.
"""

import ipaddress
import re
import socket
from urllib.parse import unquote

import idna
from yarl import URL

from schemas.errors import RejectReason, SampleRejected

SCHEMES = ("http", "https")

NUMERIC_HOST = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}\.?", re.IGNORECASE)
"""An IPv4 address as C's inet_aton reads it: decimal, octal or hexadecimal, one to four parts."""

URL_PARTS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(\?[^#]*)?")
"""Scheme, authority, path, query with its question mark. Source: RFC 3986, appendix B."""

REFERENCE_PARTS = re.compile(r"(?://([^/?#]*))?([^?#]*)(\?[^#]*)?")
"""Authority, path and query of a reference without a scheme."""

HOST_AND_PORT = re.compile(r"(?:\[([^\]%]+)(?:%[^\]]*)?\]|([^\[\]:]*))(?::([0-9]{0,9}))?")
"""The address in brackets, without its zone, or the host; and the port."""

NO_HOST_NAME = re.compile(r"[\x00-\x20\x7f#/:<>?@\[\\\]^|%]")
"""What no host name holds. Source: WHATWG URL standard, forbidden domain code points."""

UNCARRIED = re.compile(r"[^\x21-\x7e]+")
"""What a request line cannot carry; all else is sent as it was written."""

ESCAPED_DOT = re.compile("%2e", re.IGNORECASE)
REPEATED_SLASH = re.compile("//+")

STRIPPED = "".join(map(chr, range(0x21)))
"""White space and control characters around a URL. Source: WHATWG URL standard, section 4.4."""

LINE_BREAKS = str.maketrans("", "", "\t\n\r")
"""What is left out within a URL, as browsers do: cells of tables wrap."""


def parse_url(text: str) -> URL:
    """Returns a URL without credentials and fragment, its path and query as they were written.

    Path and query stand together in the URL's path, so that no library takes them apart or drops a
    question mark with nothing after it. An IPv4 address has its usual form.

    Raises:
        SampleRejected: INVALID_URL or FORBIDDEN_SCHEME.
    """
    text = text.strip(STRIPPED).translate(LINE_BREAKS)
    found = URL_PARTS.match(text)
    scheme = found[1].lower() if found else ""
    if found is None or scheme not in SCHEMES:
        detail = f"{_shown(scheme[:30]) or 'no scheme'}: only http and https"
        raise SampleRejected(RejectReason.FORBIDDEN_SCHEME, detail)
    return _built(scheme, found[2] or "", found[3], found[4] or "")


def redirected(url: URL, location: str) -> URL:
    """Returns where a redirect leads, as it was written.

    Args:
        url: that was asked, as `parse_url` returns it.

    Raises:
        SampleRejected: BAD_REDIRECT, or FORBIDDEN_SCHEME.
    """
    location = location.strip(STRIPPED).translate(LINE_BREAKS)
    if not location:
        raise SampleRejected(RejectReason.BAD_REDIRECT, "no Location")
    try:
        if URL_PARTS.match(location):
            return parse_url(location)
        return _resolved(url, location)
    except SampleRejected as rejected:
        if rejected.reason is RejectReason.FORBIDDEN_SCHEME:
            raise
        detail = "Location is not a URL"
        raise SampleRejected(RejectReason.BAD_REDIRECT, detail) from rejected


def _resolved(url: URL, reference: str) -> URL:
    """Returns where a reference without a scheme leads. Source: RFC 3986, section 5.2.2."""
    found = REFERENCE_PARTS.match(reference)
    assert found is not None  # each part may be empty
    authority, path, query = found[1], found[2], found[3]
    if authority is not None:
        return _built(url.scheme, authority, path, query or "")
    old_path, mark, old_query = url.raw_path_qs.partition("?")
    if not path:
        path, query = old_path, mark + old_query if query is None else query
    elif not path.startswith("/"):
        path = old_path[: old_path.rfind("/") + 1] + path
    return _built(url.scheme, url.raw_authority, path, query or "")


def _built(scheme: str, authority: str, path: str, query: str) -> URL:
    """Returns the URL of parts as they were written.

    Raises:
        SampleRejected: INVALID_URL.
    """
    try:
        host, port = _host_and_port(authority)
        target = _carried(without_dots(path or "/") + query)
    except (ValueError, OSError) as error:
        raise SampleRejected(RejectReason.INVALID_URL, _no_url(str(error))) from error
    return URL.build(scheme=scheme, host=host, port=port, path=target, encoded=True)


def _host_and_port(authority: str) -> tuple[str, int | None]:
    """Returns the host as it is connected to, in brackets if it is an IPv6 address, and the port.

    Raises:
        ValueError: if there is no host, or one that programs may read differently.
        OSError: if it looks like an IPv4 address and is none.
    """
    found = HOST_AND_PORT.fullmatch(authority.rpartition("@")[2])
    if found is None or "\\" in authority:
        raise ValueError("no host that all programs read alike")
    literal, name, port = found[1], found[2], found[3]
    host = f"[{ipaddress.IPv6Address(literal)}]" if literal else host_name(name)
    if port and int(port) > 0xFFFF:
        raise ValueError("a port beyond 65535")
    return host, int(port) if port else None


def host_name(text: str) -> str:
    """Returns a host's name as name servers know it, or its IPv4 address in its usual form.

    Raises:
        ValueError: if it is no name.
        OSError: if it looks like an IPv4 address and is none.
    """
    name = unquote(text, errors="strict").lower() if "%" in text else text.lower()
    if not name.isascii():
        name = _ascii_name(name)
    if not name or NO_HOST_NAME.search(name):
        raise ValueError("no host" if not name else "no host's name")
    if NUMERIC_HOST.fullmatch(name):
        return socket.inet_ntoa(socket.inet_aton(name.rstrip(".")))
    return name


def _ascii_name(name: str) -> str:
    """Returns an international name in ASCII; one that the newest rules refuse, by the old ones."""
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except UnicodeError:
        return name.encode("idna").decode("ascii")


def without_dots(path: str) -> str:
    """Returns a path with its steps `.` and `..` taken, all else as it was written.

    Source: RFC 3986, section 5.2.4.
    """
    if not path.startswith("/"):
        path = f"/{path}"
    if "/." not in path:
        return path
    taken: list[str] = []
    *steps, last = path[1:].split("/")
    for step in steps:
        if step == "..":
            del taken[-1:]
        elif step != ".":
            taken.append(step)
    if last == "..":
        del taken[-1:]
    return "/" + "/".join([*taken, "" if last in (".", "..") else last])


def plain_reading(target: str) -> str:
    """Returns a path with its query as a server may read it that reads generously.

    Many take `%2e%2e`, `\\` and `//` in a path for `..`, `/` and `/`: rules about what they lead to
    must hold as well.
    """
    path, mark, query = target.partition("?")
    path = ESCAPED_DOT.sub(".", path).replace("\\", "/")
    return REPEATED_SLASH.sub("/", without_dots(path)) + mark + query


def _carried(target: str) -> str:
    """Returns a path with its query as a request line can carry it.

    Raises:
        ValueError: if it holds what no text holds: half of a surrogate pair.
    """
    return UNCARRIED.sub(_escaped, target)


def _escaped(found: re.Match[str]) -> str:
    # Bytes of a redirect that are no UTF-8 come as surrogates, and go as the bytes they were.
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogateescape"))


def _no_url(text: str) -> str:
    return "not a URL" if "@" in text else f"not a URL: {_shown(text[:100])}"


def _shown(text: str) -> str:
    """Returns text that can be stored as UTF-8."""
    return text.encode("utf-8", "replace").decode()
