"""WebP files whose outer length is wrong although all that they hold is there."""

CONTAINER_START = 12
"""RIFF, a length, WEBP. Source: RFC 9649, section 2.4."""


def with_true_length(data: bytes) -> bytes:
    """Returns a file whose outer length is that of its chunks, if these are whole and all.

    Writers count the eight bytes before it as well, or leave it empty.
    """
    place = CONTAINER_START
    while place + 8 <= len(data):
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    if place != len(data):
        return data
    return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
