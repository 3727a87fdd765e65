"""PNGs whose picture is sound are taken, whatever stands beside it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from schemas.errors import SampleRejected
from scoring.images.prepare import prepare_image, read_header
from scoring.images.settings import ImageSettings

SETTINGS = ImageSettings(resize_mode="no", image_format="png")


def picture(mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, content: bytes, check: int | None = None) -> bytes:
    found = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", found)


def packed(content: bytes) -> bytes:
    return zlib.compress(content, 9)


def text(kind: bytes, amount: int) -> bytes:
    words = {
        b"tEXt": b"Comment\0" + b"a" * amount,
        b"zTXt": b"Comment\0\0" + packed(b"a" * amount),
        b"iTXt": b"Comment\0\1\0\0\0" + packed(b"a" * amount),
    }
    return chunk(kind, words[kind])


BESIDE = {
    "long tEXt": text(b"tEXt", 6_000_000),
    "long zTXt": text(b"zTXt", 9_000_000),
    "long iTXt": text(b"iTXt", 9_000_000),
    "bomb of iTXt": text(b"iTXt", 300_000_000),
    "many zTXt": text(b"zTXt", 900_000) * 100,
    "tEXt with a bad check": chunk(b"tEXt", b"Comment\0hello", 0),
    "iTXt with a bad check": chunk(b"iTXt", b"Comment\0\0\0\0\0hello", 0),
    "zTXt of no method": chunk(b"zTXt", b"Comment\0\7" + packed(b"a")),
    "zTXt that is cut": chunk(b"zTXt", b"Comment\0\0" + packed(b"abc" * 999)[:9]),
    "iTXt without a word": chunk(b"iTXt", b""),
    "iTXt of no method": chunk(b"iTXt", b"Comment\0\1\x09\0\0abc"),
    "time with a bad check": chunk(b"tIME", bytes(7), 1),
    "sizes that are cut": chunk(b"pHYs", b"\0"),
    "lightness that is cut": chunk(b"gAMA", b"\0"),
    "colours that are cut": chunk(b"cHRM", b"\0"),
    "EXIF with a bad check": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", 2),
    "a profile that is a bomb": chunk(b"iCCP", b"x\0\0" + packed(bytes(90_000_000))),
    "a profile that is cut": chunk(b"iCCP", b"x\0\0" + packed(bytes(999))[:8]),
    "a profile with a bad check": chunk(b"iCCP", b"x\0\0" + packed(bytes(999)), 3),
    "unknown with a bad check": chunk(b"xyZz", b"abc", 4),
}


@pytest.mark.parametrize("place", ["before the picture", "after the picture"])
@pytest.mark.parametrize("name", BESIDE)
def test_a_sound_picture_is_taken_whatever_stands_beside_it(name: str, place: str) -> None:
    plain = picture()
    at = 33 if place == "before the picture" else plain.index(b"IEND") - 4
    image = prepare_image(plain[:at] + BESIDE[name] + plain[at:], SETTINGS)
    assert image.encoded == prepare_image(plain, SETTINGS).encoded


def test_a_picture_with_a_fault_of_its_own_stays_rejected() -> None:
    plain = picture()
    header, data = plain.index(b"IHDR"), plain.index(b"IDAT")
    broken = [
        plain[: header + 17] + bytes(4) + plain[header + 21 :],
        plain[: data + 500] + bytes(900) + plain[data + 1400 :],
        plain[: data + 500],
    ]
    for file in broken:
        with pytest.raises(SampleRejected):
            prepare_image(file[:33] + BESIDE["long zTXt"] + file[33:], SETTINGS)


def test_a_palette_and_its_transparent_colour_outlive_a_text() -> None:
    image = Image.open(io.BytesIO(picture("P")))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=0)
    plain = file.getvalue()
    data = plain[:33] + BESIDE["tEXt with a bad check"] + plain[33:]
    assert prepare_image(data, SETTINGS).pixel_hash == prepare_image(plain, SETTINGS).pixel_hash


@pytest.mark.parametrize(
    "start", [b"\x89PNG\r\n\x1a\n", b"RIFF\x09\0\0\0WEBPVP8 ", b"II*\0", b"BM"]
)
def test_what_pillow_says_of_a_file_is_the_same_each_time(start: bytes) -> None:
    details = set()
    for _ in range(3):
        with pytest.raises(SampleRejected) as raised:
            read_header(start + bytes(50))
        details.add(raised.value.detail)
    assert len(details) == 1
    assert " 0x" not in details.pop()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright_once(orientation: int) -> None:
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[:10, :15] = (200, 30, 60)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    tiff, jpeg = io.BytesIO(), io.BytesIO()
    image.save(tiff, "TIFF", exif=exif)
    image.save(jpeg, "JPEG", exif=exif, quality=100, subsampling=0)
    one, other = (prepare_image(file.getvalue(), SETTINGS) for file in (tiff, jpeg))
    assert (one.width, one.height) == (other.width, other.height)
    assert (one.original_width, one.original_height) == (other.width, other.height)
    shown = [np.asarray(Image.open(io.BytesIO(each.encoded))).astype(int) for each in (one, other)]
    assert np.abs(shown[0] - shown[1]).max() < 12
