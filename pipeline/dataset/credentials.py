"""URLs as they may be stored: without the user name and password that some of them carry."""

import re

_START = re.compile(
    r"\s*(?:(?:https?|wss?|ftp):[/\\]*|(?:[^/\\?#]*:)?[/\\]{2})", re.IGNORECASE | re.DOTALL
)
"""What stands before a URL's host: browsers take any number of slashes of either kind."""

_BY_RFC, _BY_BROWSERS = re.compile(r"[^/?#]*"), re.compile(r"[^/\\?#]*")
"""User, password, host and port: the two disagree on whether a backslash ends them."""


def without_credentials(url: str) -> str:
    """Returns a URL as it is but for a user name and password, whatever else is wrong with it.

    Where readers disagree on what is the host, what any of them takes for a password goes: a
    broken URL is stored too, as one that was rejected.

    Source: RFC 3986, section 3.2; WHATWG URL Standard, "authority state".
    """
    start = _START.match(url) if "@" in url else None
    if start is None:
        return url
    rest = url[start.end() :]
    only_in_browsers = start[0].endswith("\\")
    for pattern in (_BY_BROWSERS,) if only_in_browsers else (_BY_RFC, _BY_BROWSERS):
        authority = pattern.match(rest)
        assert authority is not None
        rest = authority[0].rpartition("@")[2] + rest[authority.end() :]
    return url[: start.end()] + rest
