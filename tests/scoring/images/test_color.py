"""A picture's colours are what its profile says, and nothing changes where it says nothing."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scoring.images.color import MAX_PROFILE_BYTES, conversion
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings
from tests.color_profiles import (
    ADOBE,
    P3,
    PROPHOTO,
    SRGB,
    SWAPPED,
    cmyk_profile,
    grey_profile,
    in_srgb,
    rgb_profile,
)

LOSSLESS = ImageSettings(resize_mode="no", image_format="png")

LIKE_SRGB = {
    "none": b"",
    "garbage": b"no profile at all " * 20,
    "header alone": rgb_profile(P3)[:128],
    "cut": rgb_profile(P3)[:300],
    "sRGB": rgb_profile(SRGB),
    "grey for colours": grey_profile(1.0),
    "of a press for colours": cmyk_profile(),
    "link": rgb_profile(P3).replace(b"mntr", b"link", 1),
    "unknown space": rgb_profile(P3).replace(b"RGB ", b"7CLR", 1),
    "huge": rgb_profile(P3) + bytes(MAX_PROFILE_BYTES),
}


def patches() -> np.ndarray:
    """Returns 64 colours, 16x16 pixels each, none at the borders of sRGB."""
    levels = np.array([60, 100, 140, 180], dtype=np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(8, 8, 3)
    return np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1)


def as_file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def stored(data: bytes, settings: ImageSettings = LOSSLESS) -> np.ndarray:
    encoded = prepare_image(data, settings).encoded
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)


FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    ("primaries", "gamma"), [(P3, None), (ADOBE, 2.2), (PROPHOTO, 1.8), (SWAPPED, None)]
)
def test_a_profile_says_what_the_colours_are(
    file_format: str, primaries: list[list[float]], gamma: float | None
) -> None:
    pixels = patches()
    profile = rgb_profile(primaries, gamma)
    image = Image.fromarray(pixels)
    data = as_file(image, file_format, icc_profile=profile, **FORMATS[file_format])
    plain = as_file(image, file_format, **FORMATS[file_format])
    expected = in_srgb(pixels, primaries, gamma).astype(int)
    wide = (expected > 0) & (expected < 255)  # what sRGB cannot hold is cut off, each in its way
    error = np.abs(stored(data) - expected)[wide]
    assert error.mean() < 1.5 < np.abs(stored(plain) - expected)[wide].mean()
    assert np.percentile(error, 99) <= (12 if file_format == "AVIF" else 6)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", LIKE_SRGB)
def test_what_says_nothing_else_keeps_its_bytes(file_format: str, name: str) -> None:
    image = Image.fromarray(patches())
    profile = LIKE_SRGB[name]
    if file_format == "AVIF" and len(profile) > MAX_PROFILE_BYTES:
        profile = b"x" * 100_000
    plain = as_file(image, file_format, **FORMATS[file_format])
    data = as_file(image, file_format, icc_profile=profile, **FORMATS[file_format])
    settings = ImageSettings(image_size=64)
    assert prepare_image(data, settings).encoded == prepare_image(plain, settings).encoded


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF"])
def test_grey_is_as_light_as_its_profile_says(file_format: str) -> None:
    image = Image.fromarray(patches()).convert("L")
    light = as_file(image, file_format, icc_profile=grey_profile(1.0))
    expected = in_srgb(np.asarray(image)[:, :, None].repeat(3, axis=2), SRGB, 1.0).astype(int)
    assert np.abs(stored(light) - expected).mean() < 3
    assert np.abs(stored(as_file(image, file_format)) - expected).mean() > 20
    colours = as_file(image, file_format, icc_profile=rgb_profile(P3))
    assert np.abs(stored(colours) - np.asarray(image)[:, :, None]).max() <= 8  # grey stays grey


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_inks_are_what_their_profile_says(file_format: str) -> None:
    """A yellow ink that is cyan gives cyan; without the profile it is yellow."""
    image = Image.new("CMYK", (64, 64), (0, 0, 255, 0))
    red, green, blue = stored(as_file(image, file_format, icc_profile=cmyk_profile()))[32, 32]
    assert blue > red + 40 and green > red + 40
    red, green, blue = stored(as_file(image, file_format))[32, 32]
    assert red > blue + 40 and green > blue + 40


def test_transparent_parts_stay_white() -> None:
    pixels = np.dstack([patches(), np.zeros((128, 128), dtype=np.uint8)])
    data = as_file(Image.fromarray(pixels), "PNG", icc_profile=rgb_profile(ADOBE, 2.2))
    assert (stored(data) == 255).all()


def test_a_profile_is_read_once() -> None:
    profile = rgb_profile(P3)
    assert conversion(profile) is conversion(bytes(bytearray(profile)))
