"""Image files that hold a picture and nothing else: no metadata, profile, thumbnail or junk."""

from scoring.images import jpeg

PNG_START = 8
PLAIN_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
WEBP_PICTURES = (b"VP8 ", b"VP8L")


def is_plain(data: bytes, file_format: str) -> bool:
    """Returns whether a whole file of the format is a picture alone, with nothing after it."""
    if file_format == "jpeg":
        return jpeg.is_plain(data)
    if file_format == "png":
        return _is_plain_png(data)
    return file_format == "webp" and _is_plain_webp(data)


def _is_plain_png(data: bytes) -> bool:
    """Source: PNG (third edition), section 5."""
    place = PNG_START
    kind = b""
    while place + 12 <= len(data) and kind != b"IEND":
        kind = data[place + 4 : place + 8]
        if kind not in PLAIN_CHUNKS:
            return False
        place += 12 + int.from_bytes(data[place : place + 4])
    return kind == b"IEND" and place == len(data)


def _is_plain_webp(data: bytes) -> bool:
    """Source: RFC 9649, section 2.5: a simple file is one chunk, padded to an even length."""
    length = int.from_bytes(data[16:20], "little")
    return (
        data[12:16] in WEBP_PICTURES
        and int.from_bytes(data[4:8], "little") == len(data) - 8
        and len(data) == 20 + length + length % 2
    )
