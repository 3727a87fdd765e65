"""JPEG files as the web has them: harmless faults are mended, so that decoding can stay strict.

libjpeg only warns of a broken file and fills what is missing with grey. So every warning is taken
as an error, and the file is asked for again without what was warned of, where that lost no pixel:
bytes between segments, padding after a scan, an end marker that is not there, odd header fields.
What is left, missing or garbled scan data above all, stays an error.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

APP0, APP2, APP14, DHT, DQT, DRI, EOI, SOS = 0xE0, 0xE2, 0xEE, 0xC4, 0xDB, 0xDD, 0xD9, 0xDA
ICC_START = b"ICC_PROFILE\0"
"""What the pieces of a profile begin with. Source: ICC.1:2022, annex B.4."""
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2,)
STANDALONE = (0x01, *range(0xD0, 0xD8))

PLAIN_SEGMENTS = frozenset({APP14, DHT, DQT, DRI, SOS, *SEQUENTIAL, *PROGRESSIVE})
JFIF_BYTES = 18
"""Length of an APP0 segment that holds no thumbnail, its marker with it."""

MAX_MENDINGS = 24
"""Decodings of one file, at most; each can cost as much as the whole image."""

READ_AHEAD_BYTES = 16
"""Bytes after a scan's last bit that libjpeg takes into its bit buffer and does not count."""

_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class Segment:
    """A marker and what belongs to it; of a scan, the entropy-coded data too."""

    marker: int
    start: int
    """Where its 0xFF lies."""
    body: int
    """First byte after the length field; equals `stop` where there is none."""
    data: int
    """Of a scan: first byte of the entropy-coded data; otherwise `stop`."""
    stop: int


def decode_mending(data: bytes, decode: Callable[[bytes], Pixels]) -> tuple[Pixels, bool]:
    """Returns the pixels of a file, and whether they are its own or those of its mended form.

    Args:
        decode: raises `ValueError` with libjpeg's words for whatever it warns of.

    Raises:
        ValueError: if the file has other faults.
    """
    waiting, first_error = [data], None
    for _ in range(MAX_MENDINGS):
        file = waiting.pop(0)
        try:
            return decode(file), first_error is None
        except ValueError as error:
            first_error = first_error or error
            waiting += mendings(file, str(error))
        if not waiting:
            break
    raise first_error or ValueError("no data")


def count_scans(data: bytes) -> int:
    """Returns how often the marker of a scan stands in a file, whatever it is part of there.

    `bytes.count` takes several times as long: of a photograph, 3 % of all that is done with it.
    """
    found = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero((found[:-1] == 0xFF) & (found[1:] == SOS)))


def mendings(data: bytes, complaint: str) -> list[bytes]:
    """Returns the files that may be meant by one that libjpeg complains of."""
    if "Premature end of JPEG file" in complaint:
        return [data.rstrip(b"\xff") + b"\xff\xd9"] if is_complete(data) else []
    extraneous = _EXTRANEOUS.search(complaint)
    if extraneous:
        tidy = without_junk(data)
        if tidy != data:
            return [tidy]
        return _without_padding(data, int(extraneous[1]), int(extraneous[2], 16))
    if "Invalid SOS parameters" in complaint:
        return _with_whole_scans(data)
    if "bad ICC marker" in complaint:
        return [_without_profile(data)]
    if "unknown JFIF revision" in complaint:
        places = [segment.body for segment in segments(data) if segment.marker == APP0]
        return [_replaced(data, places[0] + 5, b"\x01\x01")] if places else []
    return []


def segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments after the start marker, up to the end marker or what cannot be read."""
    place = 2
    while True:
        start = data.find(b"\xff", place)
        while 0 <= start < len(data) - 1 and data[start + 1] in (0x00, 0xFF):
            start = data.find(b"\xff", start + 1)
        if start < 0 or start + 2 > len(data):
            return
        marker = data[start + 1]
        if marker == EOI or marker in STANDALONE:
            yield Segment(marker, start, start + 2, start + 2, start + 2)
            if marker == EOI:
                return
            place = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4])
        place = start + 2 + length
        if length < 2 or place > len(data):
            return
        stop = _scan_end(data, place) if marker == SOS else place
        yield Segment(marker, start, start + 4, place, stop)
        place = stop


def _scan_end(data: bytes, place: int) -> int:
    """Returns where the next marker lies that does not belong to entropy-coded data."""
    while (place := data.find(b"\xff", place)) >= 0:
        following = data[place + 1 : place + 2]
        if following and (following[0] == 0x00 or 0xD0 <= following[0] <= 0xD7):
            place += 2
        elif following == b"\xff":
            place += 1
        else:
            return place
    return len(data)


def without_junk(data: bytes) -> bytes:
    """Returns a file without the bytes that belong to no segment before its last scan's end."""
    found = list(segments(data))
    if not found or found[-1].marker != EOI:
        return data
    return data[:2] + b"".join(data[segment.start : segment.stop] for segment in found)


def _without_padding(data: bytes, count: int, marker: int) -> list[bytes]:
    """Returns the file without `count` equal bytes at the end of a scan before a marker.

    One file for each scan that can be meant: where the wrong one is shortened, its data ends
    early, and decoding fails again. Bytes that differ are no padding: a scan with a fault in it
    ends early as well, and what is left over is then the rest of its data. Nor is the end of a
    longer run of zeros: there the zeros stand for lost data, and much of them was decoded as grey.
    """
    files = []
    for scan, after in pairwise(segments(data)):
        if scan.marker == SOS and after.marker == marker:
            content = data[scan.data : scan.stop]
            run = len(content) - len(content.rstrip(content[-1:]))
            if count <= run <= count + READ_AHEAD_BYTES:
                files.append(data[: scan.stop - count] + data[scan.stop :])
    return files


def _without_profile(data: bytes) -> bytes:
    """Returns a file without its ICC profile, whose pieces are not all there or not in order."""
    pieces = [
        segment
        for segment in segments(data)
        if segment.marker == APP2 and data[segment.body :].startswith(ICC_START)
    ]
    for piece in reversed(pieces):
        data = data[: piece.start] + data[piece.stop :]
    return data


def _with_whole_scans(data: bytes) -> list[bytes]:
    """Returns a sequential file whose scans say what they hold: all coefficients, once."""
    found = list(segments(data))
    if not any(segment.marker in SEQUENTIAL for segment in found):
        return []
    for scan in found:
        if scan.marker == SOS:
            data = _replaced(data, scan.data - 3, b"\x00\x3f\x00")
    return [data]


def _replaced(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


def is_complete(data: bytes) -> bool:
    """Returns whether the scans bring every coefficient of every component to its full precision.

    A progressive file that is cut between two scans decodes without a complaint once it has an
    end marker: only this tells.
    """
    missing: dict[int, set[int]] = {}
    is_progressive = False
    for segment in segments(data):
        body = data[segment.body : segment.data]
        if segment.marker in SEQUENTIAL + PROGRESSIVE and len(body) > 5:
            is_progressive = segment.marker in PROGRESSIVE
            missing = {identity: set(range(64)) for identity in body[6::3][: body[5]]}
        elif segment.marker == SOS and len(body) >= 4:
            first, last, bits = body[-3], body[-2], body[-1] & 0x0F
            if not is_progressive:
                first, last, bits = 0, 63, 0
            for identity in body[1::2][: body[0]]:
                if bits == 0:
                    missing.get(identity, set()).difference_update(range(first, last + 1))
    return bool(missing) and not any(missing.values())


def is_plain(data: bytes) -> bool:
    """Returns whether a file holds a picture and nothing else: no metadata, no thumbnail, no junk.

    A picture with an ICC profile or EXIF is not plain.
    """
    place, marker = 2, 0
    for segment in segments(data):
        is_header = segment.marker == APP0 and segment.stop - segment.start == JFIF_BYTES
        is_allowed = segment.marker in PLAIN_SEGMENTS or segment.marker == EOI or is_header
        if segment.start != place or not is_allowed:
            return False
        place, marker = segment.stop, segment.marker
    return marker == EOI and place == len(data)
