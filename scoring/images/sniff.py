"""Image formats, known by a file's first bytes whatever it is called."""

from schemas.errors import RejectReason, SampleRejected

SNIFFED_BYTES = 64
"""Bytes from a file's start that tell its format."""

_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def sniff(start: bytes) -> str | None:
    """Returns the image format that a file's first bytes announce, None if none that is taken."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith(b"BM"):
        return "bmp"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if start[4:8] == b"ftyp" and _AVIF_BRANDS & set(_brands(start)):
        return "avif"
    return None


def _brands(start: bytes) -> list[bytes]:
    """Returns a file's brands, the major one first, as far as its first bytes hold them.

    Source: ISO/IEC 14496-12, section 4.3: the version stands between the two kinds.
    """
    end = min(int.from_bytes(start[:4]), SNIFFED_BYTES)
    return [start[8:12], *(start[at : at + 4] for at in range(16, end, 4))]


def require_image(start: bytes) -> str:
    """Returns the image format that a file's first bytes announce.

    Raises:
        SampleRejected: NOT_AN_IMAGE, with what it looks like instead.
    """
    file_format = sniff(start)
    if file_format is None:
        raise SampleRejected(RejectReason.NOT_AN_IMAGE, _likeness(start))
    return file_format


def _likeness(start: bytes) -> str:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "empty"
    if text.startswith(b"%pdf"):
        return "looks like PDF"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "looks like SVG"
    if text.startswith(b"<"):
        return "looks like HTML or XML"
    return f"unknown format, starts with {start[:8].hex()}"
