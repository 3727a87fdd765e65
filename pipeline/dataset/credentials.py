"""URLs as they may be stored: without the user name and password that some of them carry."""

import re
from collections.abc import Iterable, Iterator, Mapping

from schemas.errors import ConfigError

_START = re.compile(
    r"\s*(?:(?:https?|wss?|ftp):[/\\]*|(?:[^/\\?#]*:)?[/\\]{2})", re.IGNORECASE | re.DOTALL
)
"""What stands before a URL's host: browsers take any number of slashes of either kind."""

_BY_RFC, _BY_BROWSERS = re.compile(r"[^/?#]*"), re.compile(r"[^/\\?#]*")
"""User, password, host and port: the two disagree on whether a backslash ends them."""

_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*:[/\\]{2,})[^/\\?#\s]*:[^/?#\s]*@", re.IGNORECASE)
"""What stands before a host and holds a password, also within a chain of fsspec's URLs."""


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


def holds_password(text: str) -> bool:
    """Returns whether a URL in a text has a password in it.

    A name alone is none: abfs://CONTAINER@ACCOUNT and sftp://USER@HOST are addresses.
    """
    return _PASSWORD.search(text) is not None


def refuse_passwords(paths: Iterable[str]) -> None:
    """Raises `ConfigError` if a path or URL holds a password, which is not repeated."""
    for path in paths:
        if holds_password(path):
            bare = _PASSWORD.sub(r"\1", path)
            raise ConfigError(
                f"{bare} was given with a password in it, which would be sent along with the job "
                "and stored with the dataset: give the URL without, and the "
                "credentials in the environment of this machine and of the workers (AWS_…, "
                "GOOGLE_APPLICATION_CREDENTIALS, FSSPEC_…)"
            )


def texts_of(value: object) -> Iterator[str]:
    """Yields all texts in a configuration, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from texts_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts_of(part)
