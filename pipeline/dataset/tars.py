"""The images of a fetched shard, streamed from its tar in the order of its table."""

import tarfile
from collections.abc import Iterator, Sequence
from typing import IO

from schemas.errors import DatasetError
from schemas.shards import DatasetLayout, image_member
from schemas.storage import open_read

BLOCK_BYTES = 512
"""Length of a member's header, and what members are padded to."""

END_BYTES = 2 * BLOCK_BYTES
"""A tar ends with two blocks of zeros."""

REGULAR_FILE = (b"0", b"\0")


def read_images(
    layout: DatasetLayout,
    shard: int,
    keys: Sequence[str],
    image_formats: Sequence[str | None],
) -> Iterator[bytes]:
    """Yields the encoded image of each row, of several the first, one in memory at a time.

    Args:
        keys: of the rows, all of the table or some, in its order.

    Raises:
        DatasetError: if the tar does not hold the table's images in the table's order.
    """
    names = []
    for key, image_format in zip(keys, image_formats, strict=True):
        if image_format is None:
            raise DatasetError(
                f"{layout.fetched(shard, 'tar')}: pair {key} has no image, so that it cannot be "
                "scored: instruction samples go from fetch to pack"
            )
        names.append(image_member(key, image_format))
    return read_members(layout, shard, names)


def read_members(layout: DatasetLayout, shard: int, names: Sequence[str]) -> Iterator[bytes]:
    """Yields the content of members of a fetched shard's tar, one in memory at a time.

    Args:
        names: in their order in the tar.

    Raises:
        DatasetError: if the tar does not hold them in this order.
    """
    path = layout.fetched(shard, "tar")
    with open_read(path) as file:
        members = _members(file, path)
        for name in names:
            size = next((size for member, size in members if member == name), None)
            if size is None:
                raise DatasetError(
                    f"{path} does not hold {name} where its table says: fetch shard {shard} again"
                )
            content = file.read(size)
            if len(content) != size:
                raise DatasetError(f"{path} ends within {name}: fetch shard {shard} again")
            yield content


def member_places(file: IO[bytes], path: str) -> dict[str, tuple[int, int]]:
    """Returns where in a tar the content of each member lies: its first byte and its length.

    Raises:
        DatasetError: if the fetch stage did not write it.
    """
    return {name: (file.tell(), size) for name, size in _members(file, path)}


def padded(length: int) -> int:
    """Returns the bytes that a member of a length takes behind its header."""
    return -(-length // BLOCK_BYTES) * BLOCK_BYTES


def name_and_size(header: bytes) -> tuple[str, int]:
    """Returns what the header of a member says of it.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".

    Raises:
        ValueError: if it is no header of a file with a name of at most 100 bytes, as ours are.
    """
    if header[156:157] not in REGULAR_FILE or header[257:262] != b"ustar":
        raise ValueError("no header of a file in a tar")
    return header[:100].rstrip(b"\0").decode(), int(header[124:136].rstrip(b"\0 "), 8)


def _members(file: IO[bytes], path: str) -> Iterator[tuple[str, int]]:
    """Yields name and size of the tar's members, the file standing at the content of each.

    Ten times as quick as `tarfile`, whose Python code would hold up a fast GPU. It reads what the
    fetch stage writes: USTAR, regular files, names of at most 100 bytes.
    """
    while True:
        header = file.read(BLOCK_BYTES)
        if len(header) < BLOCK_BYTES or not header.strip(b"\0"):
            return
        try:
            name, size = name_and_size(header)
        except ValueError as error:
            raise DatasetError(f"{path} is not a tar that the fetch stage wrote") from error
        start = file.tell()
        yield name, size
        file.seek(start + padded(size))


def _empty_header() -> bytes:
    member = tarfile.TarInfo()
    member.mode = 0o444
    return member.tobuf(tarfile.USTAR_FORMAT)


EMPTY_HEADER = _empty_header()
"""Of an empty file without a name."""

SIZE, CHECKSUM = slice(124, 135), slice(148, 155)
"""Where a header says the size, in octal digits, and the sum of its bytes."""

NAME_BYTES = 100
BEFORE_SIZE = EMPTY_HEADER[NAME_BYTES : SIZE.start]
BEFORE_SUM = EMPTY_HEADER[SIZE.stop : CHECKSUM.start]
AFTER_SUM = EMPTY_HEADER[CHECKSUM.stop :]
"""What stands between name, size and sum in a header, and behind them."""

ZEROS = bytes(BLOCK_BYTES)


def _sum_of_the_rest() -> int:
    """Returns the sum of a header's bytes but for name and size, its own digits being spaces."""
    header = bytearray(EMPTY_HEADER)
    header[SIZE] = b""
    header[CHECKSUM.start - 11 : CHECKSUM.stop - 11] = b" " * 7
    return sum(header)


REST_SUM = _sum_of_the_rest()

WRITTEN_AT_ONCE = 1024 * 1024
"""Bytes of members that wait in memory: a write for each would cost more than making it does."""


class TarWriter:
    """A tar that depends on nothing but the names and bytes of its members, in their order.

    The same bytes as `tarfile.TarFile.addfile` writes, in a quarter of the time. The end mark is
    written when the block ends without an error.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._bytes = file, 0
        self._waiting: list[bytes | bytearray] = []
        self._waiting_bytes = 0

    def __enter__(self) -> "TarWriter":
        """Returns the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the tar as `tarfile` does: with zeros up to a whole record."""
        if kind is None:
            end = self._bytes + END_BYTES
            self._take(bytes(END_BYTES + -end % tarfile.RECORDSIZE))
            self._write()

    @property
    def length(self) -> int:
        """Bytes of what was added so far: where the next member begins."""
        return self._bytes

    def add(self, name: str, content: bytes) -> int:
        """Adds a file; returns where in the tar its content begins.

        Args:
            name: at most 100 ASCII characters.
        """
        encoded, size = name.encode("ascii"), b"%011o" % len(content)
        checksum = b"%06o\0" % (REST_SUM + sum(encoded) + sum(size))
        header = b"".join(
            (encoded.ljust(NAME_BYTES, b"\0"), BEFORE_SIZE, size, BEFORE_SUM, checksum, AFTER_SUM)
        )
        place = self._bytes + BLOCK_BYTES
        self._take(header, content, ZEROS[: -len(content) % BLOCK_BYTES])
        if self._waiting_bytes >= WRITTEN_AT_ONCE:
            self._write()
        return place

    def _take(self, *pieces: bytes | bytearray) -> None:
        taken = sum(map(len, pieces))
        self._waiting += pieces
        self._waiting_bytes += taken
        self._bytes += taken

    def _write(self) -> None:
        self._file.write(b"".join(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
