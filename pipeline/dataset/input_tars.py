"""Members of input tars: found by their headers, read one by one from their place."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pipeline.dataset.tars import BLOCK_BYTES, END_BYTES, padded
from schemas.errors import DatasetError, RejectReason, SampleRejected
from schemas.storage import read_range

MAX_NAME_BYTES = 1 << 20
"""Longest name or set of pax records that is read."""

MAX_LENGTH_DIGITS = 8
"""Digits of a pax record's length with the space after them; more would pass `MAX_NAME_BYTES`."""

REGULAR_FILE = (b"0", b"\0", b"7")
GNU_LONG_NAME, PAX_RECORDS = b"L", b"x"

_PLACE = re.compile(r"(\d+)\+(\d+)#([0-9a-f]{8})@(.+)", re.DOTALL)


class BrokenTar(ValueError):
    """These bytes are no tar, or a damaged one."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a tar, as its header describes it."""

    name: str
    start: int
    """First byte of its content in the tar."""
    length: int
    is_file: bool
    """False for folders, links, devices and sparse files."""
    header_hash: str
    """Tells it apart from what another tar holds at its place."""

    def place_in(self, path: str) -> str:
        """Returns what `TarFiles` finds the content by."""
        return f"{self.start}+{self.length}#{self.header_hash}@{path}"


def read_members(file: IO[bytes], tar_bytes: int) -> Iterator[Member]:
    """Yields the members of a tar in their order; reads headers alone.

    The caller may move the file's position in between. Names come from USTAR, GNU and pax headers.

    Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header".

    Raises:
        BrokenTar: where a header is damaged, or the tar ends before its end mark or goes on
            behind it.
    """
    place = 0
    name = size = None
    is_sparse = False
    while True:
        file.seek(place)
        header = file.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES:
            raise BrokenTar(f"the tar is cut short: it ends at byte {place} without its end mark")
        if not header.strip(b"\0"):
            _check_rest(file, place)
            return
        length = _length(header, place)
        kind, start = header[156:157], place + BLOCK_BYTES
        if kind in (GNU_LONG_NAME, PAX_RECORDS):
            records = file.read(length) if length <= MAX_NAME_BYTES else b""
            if len(records) < length:
                raise BrokenTar(f"the header at byte {place} is too long, or the tar is cut short")
            if kind == GNU_LONG_NAME:
                name = records.rstrip(b"\0")
            else:
                found = _pax_records(records, place)
                name, size = found.get(b"path", name), found.get(b"size", size)
                is_sparse = any(key.startswith(b"GNU.sparse") for key in found)
        else:
            if size is not None:
                length = _number(size, 10, place)
            if start + length > tar_bytes:
                raise BrokenTar(f"the tar is cut short: the member at byte {place} goes beyond it")
            text = (name or _name(header)).decode("utf-8", "surrogateescape")
            is_file = kind in REGULAR_FILE and not is_sparse
            yield Member(text, start, length, is_file, _hash_header(header))
            name, size, is_sparse = None, None, False
        place = start + padded(length)


def _check_rest(file: IO[bytes], end_mark: int) -> None:
    """Raises `BrokenTar` unless zeros follow: tars behind one another would be lost after one."""
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise BrokenTar(
                f"there is data behind its end mark at byte {end_mark}: tars are joined with "
                "tar -A, not with cat"
            )


def _length(header: bytes, place: int) -> int:
    """Returns the length that a header declares, once its checksum is found right."""
    if not is_header(header):
        raise BrokenTar(f"there is no header of a member at byte {place}")
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:])
    return _number(field.strip(b"\0 ") or b"0", 8, place)


def is_header(block: bytes) -> bool:
    """Returns whether 512 bytes are a header: whether they add up to the checksum in them."""
    try:
        checksum = int(block[148:156].strip(b"\0 "), 8)
    except ValueError:
        return False
    return checksum == sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _hash_header(header: bytes) -> str:
    """Returns 8 hex digits that stand for a member's name, length, time and mode."""
    return hashlib.blake2b(header, digest_size=4).hexdigest()


def _number(digits: bytes, base: int, place: int) -> int:
    try:
        number = int(digits, base)
    except ValueError:
        number = -1
    if number < 0:
        raise BrokenTar(f"the length at byte {place} is no number")
    return number


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(data: bytes, place: int) -> dict[bytes, bytes]:
    """Returns what the records `length key=value` say; a length counts its whole record."""
    data = data.rstrip(b"\0")
    records, start = {}, 0
    while start < len(data):
        space = data.find(b" ", start, start + MAX_LENGTH_DIGITS)
        digits = data[start : max(space, start)]
        stop = start + int(digits) if digits.isdigit() else start
        key, equals, value = data[space + 1 : stop].partition(b"=")
        if stop > len(data) or not equals or not value.endswith(b"\n"):
            raise BrokenTar(f"the pax records at byte {place} are damaged")
        records[key] = value[:-1]
        start = stop
    return records


def check_ends(file: IO[bytes], path: str, tar_bytes: int) -> None:
    """Raises `BrokenTar` unless a tar begins with a header and ends with its end mark.

    What a writer that was stopped leaves behind lacks the mark.
    """
    first = file.read(BLOCK_BYTES)
    if len(first) == BLOCK_BYTES and first.strip(b"\0") and not is_header(first):
        raise BrokenTar("it is no tar (a compressed one must be unpacked first)")
    file.seek(max(0, tar_bytes - END_BYTES))
    if tar_bytes < END_BYTES or file.read(END_BYTES).strip(b"\0"):
        raise BrokenTar("it is cut short: its writer was stopped before it wrote the end mark")


class TarFiles:
    """Reads members from the places that the read stage noted."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def read(self, place: str) -> bytes:
        """Returns the content of a member.

        Raises:
            SampleRejected: if it is too large.
            DatasetError: if the tar is no longer what the read stage saw.
        """
        match = _PLACE.fullmatch(place)
        if match is None:
            raise DatasetError(f"{place!r} is no place in a tar: read the input again")
        start, length, path = int(match[1]), int(match[2]), match[4]
        if length > self._max_bytes:
            raise SampleRejected(RejectReason.TOO_MANY_BYTES, f"{length} bytes in the tar")
        try:
            data = read_range(path, start - BLOCK_BYTES, BLOCK_BYTES + length)
        except FileNotFoundError as error:
            raise _changed(path, "it is gone") from error
        header, content = data[:BLOCK_BYTES], data[BLOCK_BYTES:]
        if len(content) < length or not is_header(header):
            raise _changed(path, f"no member begins at byte {start} any more")
        if _hash_header(header) != match[3]:
            raise _changed(path, f"another member begins at byte {start}")
        return content


def _changed(path: str, what: str) -> DatasetError:
    return DatasetError(
        f"the input {path} has changed since its pairs were read: {what}. Put it back, or read "
        "anew with --redo read"
    )
