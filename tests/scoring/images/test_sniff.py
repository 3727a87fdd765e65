"""Files of the web that some program calls broken although their picture is sound."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from schemas.errors import SampleRejected
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings
from scoring.images.sniff import sniff

SETTINGS = ImageSettings(resize_mode="no", image_format="png")


def picture() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((140, 100), Image.Resampling.BICUBIC)


def as_file(file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture().save(file, file_format, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Returns a JPEG with one more segment after its start."""
    data = as_file("JPEG", quality=95, subsampling=0)
    head = bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2)
    return data[:2] + head + content + data[2:]


AVIF = as_file("AVIF", quality=95, subsampling="4:4:4")
WEBP = as_file("WEBP", lossless=True)

ODD = {
    "AVIF by its second brand": AVIF[:8] + b"mif1" + AVIF[12:],
    "AVIF of miaf": AVIF[:8] + b"miaf" + AVIF[12:],
    "BigTIFF": as_file("TIFF", big_tiff=True),
    "WebP with a length of the whole file": WEBP[:4] + struct.pack("<I", len(WEBP)) + WEBP[8:],
    "WebP without a length": WEBP[:4] + bytes(4) + WEBP[8:],
    "profile of which pieces are missing": segment(0xE2, b"ICC_PROFILE\0\2\3abc"),
    "profile with a piece twice": segment(0xE2, b"ICC_PROFILE\0\1\1abc")[:-2]
    + segment(0xE2, b"ICC_PROFILE\0\1\1abc")[-2:],
    "EXIF that ends after its header": segment(0xE1, b"Exif\0\0"),
    "EXIF that is another thing": segment(0xE1, b"Exif\0\0http://ns.adobe.com/xap/1.0/"),
    "EXIF of a bad table": segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
    "several pictures, says a bad table": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
}


@pytest.mark.filterwarnings("ignore")  # as decoder processes do: Pillow warns of what it mends
@pytest.mark.parametrize("name", ODD)
def test_a_sound_picture_in_an_odd_file_is_taken(name: str) -> None:
    encoded = prepare_image(ODD[name], SETTINGS).encoded
    stored = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    assert np.abs(stored - np.asarray(picture())).mean() < 2


@pytest.mark.parametrize("brands", [b"heicmif1heic", b"mif1\0\0\0\0mif1heic", b"isom\0\0\0\0mp41"])
def test_what_holds_no_avif_is_none(brands: bytes) -> None:
    start = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands
    assert sniff(start.ljust(64, b"\0")) is None


def test_a_cut_webp_is_not_taken_for_one_with_a_wrong_length() -> None:
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(SampleRejected):
            prepare_image(WEBP[: int(len(WEBP) * share)], SETTINGS)
