"""PNG files as editors leave them: a fault in what is no picture costs no picture."""

import zlib
from collections.abc import Iterator

from scoring.images.color import MAX_PROFILE_BYTES

START = 8
"""Length of the signature."""

PICTURE_CHUNKS = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT")
)
"""What decides how the picture looks, to us; the rest is text, dates and advice."""


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the kind, first byte and end of each chunk, up to the last or to where it is cut."""
    place = START
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        yield kind, place, end
        if kind == b"IEND":
            return
        place = end


def without_texts(data: bytes) -> bytes:
    """Returns a file with its picture alone, and without a profile that is damaged or a bomb."""
    kept = [data[:START]]
    for kind, start, end in chunks(data):
        if kind in PICTURE_CHUNKS and (_is_critical(kind) or _is_sound(data, kind, start, end)):
            kept.append(data[start:end])
    return b"".join(kept)


def _is_critical(kind: bytes) -> bool:
    """Returns whether no decoder may leave a chunk out. Source: PNG (third edition), 5.4."""
    return kind[:1].isupper()


def _is_sound(data: bytes, kind: bytes, start: int, end: int) -> bool:
    if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        return False
    if kind != b"iCCP":
        return True
    _, _, packed = data[start + 8 : end - 4].partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return False
    return inflate.eof
