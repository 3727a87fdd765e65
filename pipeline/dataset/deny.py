"""Deny-lists: links, hosts and hashes of pictures that nobody should hold.

Each entry is kept as a hash of eight bytes, sorted, so that a list of a hundred million lines takes
0.8 GB; a pair that is no match passes for one once in 10^11 look-ups of such a list at most, and
then it is left out, never the other way round.
"""

import functools
import gzip
import hashlib
import io
import ipaddress
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError, RejectReason
from schemas.storage import exists, is_local, local_path, open_read

HEX_DIGITS = {32: "md5", 40: "sha1", 64: "sha256"}
HASH = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}")
GZIP = b"\x1f\x8b"
LINES_AT_ONCE = 1 << 17
DENIED = (
    RejectReason.DENIED_URL,
    RejectReason.DENIED_HOST,
    RejectReason.DENIED_REDIRECT,
    RejectReason.DENIED_HASH,
)
"""Reasons whose rows keep neither address nor text."""


@dataclass(frozen=True, slots=True)
class DenyFiles:
    """The lists of one use: files of a line for each entry, also gzipped, local or in a store."""

    urls: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Returns whether there is any."""
        return bool(self.urls or self.hosts or self.hashes)


class Entries:
    """A list in memory: tells whether a text is on it."""

    def __init__(self, lines: Iterable[str]) -> None:
        parts = [np.empty(0, np.uint64)]
        waiting: list[bytes] = []
        for line in lines:
            waiting.append(_digest(line))
            if len(waiting) == LINES_AT_ONCE:
                parts.append(np.frombuffer(b"".join(waiting), np.uint64))
                waiting = []
        parts.append(np.frombuffer(b"".join(waiting), np.uint64))
        self._sorted: NDArray[np.uint64] = np.unique(np.concatenate(parts))

    def __len__(self) -> int:
        """Returns how many entries there are."""
        return len(self._sorted)

    def __contains__(self, text: str) -> bool:
        """Returns whether a text is on the list."""
        if not len(self._sorted):
            return False
        wanted = np.frombuffer(_digest(text), np.uint64)[0]
        place = int(np.searchsorted(self._sorted, wanted))
        return place < len(self._sorted) and bool(self._sorted[place] == wanted)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class DenyLists:
    """Lists that were read."""

    urls: Entries
    hosts: Entries
    hashes: Entries
    fingerprint: str
    """Of all that the files say."""

    def reason_of_urls(self, urls: Iterable[str]) -> RejectReason | None:
        """Returns why one of some addresses is denied; None if none is."""
        for url in urls:
            if len(self.urls) and (comparable(url) in self.urls or self._is_hashed(url)):
                return RejectReason.DENIED_URL
            if len(self.hosts) and any(name in self.hosts for name in _host_and_parents(url)):
                return RejectReason.DENIED_HOST
        return None

    def _is_hashed(self, url: str) -> bool:
        """Returns whether the list holds a hash of the address, so that it need not tell it."""
        data = url.encode("utf-8", "surrogatepass")
        return any(hash_of(name, data) in self.urls for name in HEX_DIGITS.values())

    def denies_bytes(self, data: bytes | bytearray | memoryview) -> bool:
        """Returns whether a picture's file is denied by its MD5, SHA-1 or SHA-256."""
        if not len(self.hashes):
            return False
        return any(hash_of(name, data) in self.hashes for name in HEX_DIGITS.values())

    def denies_hash(self, digits: str | None) -> bool:
        """Returns whether a hash that is known is on the list: of a file, or ours of pixels."""
        return digits is not None and digits in self.hashes


def hash_of(algorithm: str, data: bytes | bytearray | memoryview) -> str:
    """Returns a hash in hex digits."""
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()


def comparable(url: str) -> str:
    """Returns an address without what spells it otherwise: scheme, host's case, escapes, dots."""
    try:
        parts = urlsplit(url)
        host = _host_of(url)
        port = "" if parts.port in (None, 80, 443) else f":{parts.port}"
    except ValueError:
        return url
    query = f"?{unquote(parts.query)}" if parts.query else ""
    return f"{host}{port}{_without_dots(unquote(parts.path)) or '/'}{query}"


def _without_dots(path: str) -> str:
    """Returns a path as a server takes it: `/a/../b` is `/b`. Source: RFC 3986, section 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)


def _host_of(url: str) -> str:
    """Returns an address's host as it is asked for: without escapes, in ASCII (IDNA), lower case.

    Raises:
        ValueError: if it is no address.
    """
    host = unquote(urlsplit(url).hostname or "")
    with suppress(UnicodeError):
        host = host if host.isascii() else host.encode("idna").decode()
    return host.lower().rstrip(".")


def _host_and_parents(url: str) -> Iterator[str]:
    """Yields an address's host and the domains that it lies in."""
    try:
        host = _host_of(url)
    except ValueError:
        return
    while host:
        yield host
        _, _, host = host.partition(".")


def read_lists(files: DenyFiles) -> DenyLists:
    """Returns the lists in some files, read once in each process as long as they do not change.

    Raises:
        ConfigError: if a file is not there, or a line of hashes is none.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in (*files.urls, "", *files.hosts, "", *files.hashes):
        digest.update(_content_hash(name) if name else b"|")
    return _read(files, digest.hexdigest())


@functools.lru_cache(maxsize=4)
def _read(files: DenyFiles, fingerprint: str) -> DenyLists:
    return DenyLists(
        Entries(_lines(files.urls, _url_entry)),
        Entries(_lines(files.hosts, _host_entry)),
        Entries(_lines(files.hashes, _hash_entry)),
        fingerprint,
    )


def _content_hash(path: str) -> bytes:
    if not exists(path):
        raise ConfigError(f"there is no deny-list {path}")
    local = Path(local_path(path)) if is_local(path) else None
    if local is not None and not local.is_file() and not local.is_dir():
        raise ConfigError(
            f"the deny-list {path} is a pipe or a device, which can be read once only, and lists "
            "are read more than once: give it as a file"
        )
    digest = hashlib.blake2b(digest_size=16)
    with _reading(path), open_read(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def _lines(paths: Sequence[str], entry: Callable[[str, str], str]) -> Iterator[str]:
    """Yields the entries of some files; empty lines and such that begin with # are none."""
    for path in paths:
        with (
            _reading(path),
            open_read(path) as file,
            gzip.open(file) if _is_packed(path) else nullcontext(file) as data,
            io.TextIOWrapper(data, "utf-8", "surrogateescape") as lines,
        ):
            for number, line in enumerate(lines, 1):
                if "\0" in line:
                    raise ConfigError(
                        f"the deny-list {path} is no text, or none in UTF-8 (line {number} holds "
                        "zeros, as UTF-16 does): nothing in it would be found. Convert it, for "
                        "example by iconv -f UTF-16 -t UTF-8"
                    )
                text = line.removeprefix("\ufeff").strip()  # editors begin files with that mark
                if text and not text.startswith("#"):
                    yield entry(text, f"{path}, line {number}")


def _is_packed(path: str) -> bool:
    """Returns whether a file begins as gzip does, whatever its name."""
    with open_read(path) as file:
        return file.read(len(GZIP)) == GZIP


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Raises `ConfigError` where a list cannot be read to its end: half of one would be kept to."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(
            f"the deny-list {path} cannot be read to its end: {error}. Give a whole file of lines, "
            "plain or gzipped"
        ) from error


def _url_entry(line: str, place: str) -> str:
    return (
        line.lower() if HASH.fullmatch(line) else comparable(line if "://" in line else f"//{line}")
    )


def _is_ipv6(name: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(name))
    except ValueError:
        return False


def _host_entry(line: str, place: str) -> str:
    name = line.lower().removeprefix("*").strip(".").removeprefix("[").removesuffix("]")
    if "/" in name or " " in name or not name or (":" in name and not _is_ipv6(name)):
        raise ConfigError(
            f"{place}: {line[:80]!r} is no host: give it without scheme, port and path; lists of "
            "addresses are deny-urls"
        )
    try:
        return name.encode("idna").decode() if not name.isascii() else name
    except UnicodeError:
        return name


def _hash_entry(line: str, place: str) -> str:
    if not HASH.fullmatch(line):
        raise ConfigError(
            f"{place}: {line[:80]!r} is no MD5, SHA-1 or SHA-256 and no hash of pixels: give 32, "
            "40 or 64 hexadecimal digits a line"
        )
    return line.lower()
