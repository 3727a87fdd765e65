import io
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from schemas.errors import RejectReason, SampleRejected
from scoring.images.prepare import (
    check_limits,
    hash_pixels,
    prepare_image,
    read_header,
    turn_upright,
)
from scoring.images.settings import ImageSettings
from scoring.images.sniff import sniff

SETTINGS = ImageSettings(image_size=64)


def soft_image(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Returns a picture of soft random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert(mode)


def as_file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def stored_pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def rejection_of(data: bytes, **settings: Any) -> RejectReason:
    with pytest.raises(SampleRejected) as caught:
        prepare_image(data, replace(SETTINGS, **settings))
    return caught.value.reason


@pytest.mark.parametrize(
    ("file_format", "name"),
    [
        ("JPEG", "jpeg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
    ],
)
def test_a_format_is_known_by_its_bytes_and_decoded(file_format: str, name: str) -> None:
    data = as_file(soft_image(90, 60), file_format)
    assert sniff(data[:64]) == name
    image = prepare_image(data, replace(SETTINGS, resize_mode="no", image_format="png"))
    assert (image.width, image.height) == (90, 60)
    reference = np.asarray(soft_image(90, 60))
    assert psnr(stored_pixels(image.encoded), reference) > 25


@pytest.mark.parametrize(
    ("data", "likeness"),
    [
        (b"", "empty"),
        (b"<!doctype html><html></html>", "HTML"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\xef\xbb\xbf  <svg/>", "SVG"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\x03\x04", "unknown format"),
        (b"\xff\xd8", "unknown format"),
    ],
)
def test_what_is_no_image_is_called_so(data: bytes, likeness: str) -> None:
    with pytest.raises(SampleRejected, match=likeness) as caught:
        read_header(data)
    assert caught.value.reason is RejectReason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    ("mode", "size", "can_upscale", "expected"),
    [
        ("keep_ratio", (120, 80), False, (96, 64)),
        ("keep_ratio", (80, 120), False, (64, 96)),
        ("keep_ratio", (60, 30), False, (60, 30)),
        ("keep_ratio", (60, 30), True, (128, 64)),
        ("keep_ratio_largest", (128, 64), False, (64, 32)),
        ("keep_ratio_largest", (32, 16), False, (32, 16)),
        ("keep_ratio_largest", (32, 16), True, (64, 32)),
        ("center_crop", (200, 100), False, (64, 64)),
        ("center_crop", (100, 40), False, (64, 40)),
        ("center_crop", (100, 40), True, (64, 64)),
        ("border", (200, 100), False, (64, 64)),
        ("border", (20, 10), False, (64, 64)),
        ("border", (20, 10), True, (64, 64)),
        ("no", (120, 80), False, (120, 80)),
        ("keep_ratio", (640, 480), False, (85, 64)),
    ],
)
def test_resize_modes_give_their_sizes(
    mode: Any, size: tuple[int, int], can_upscale: bool, expected: tuple[int, int]
) -> None:
    settings = replace(SETTINGS, resize_mode=mode, can_upscale=can_upscale)
    image = prepare_image(as_file(soft_image(*size), "JPEG"), settings)
    assert (image.width, image.height) == expected
    assert stored_pixels(image.encoded).shape == (expected[1], expected[0], 3)
    assert (image.original_width, image.original_height) == size


def test_a_border_is_white_and_the_image_in_its_middle() -> None:
    data = as_file(Image.new("RGB", (32, 16), (0, 0, 0)), "PNG")
    settings = replace(SETTINGS, resize_mode="border", image_format="png")
    pixels = stored_pixels(prepare_image(data, settings).encoded)
    assert (pixels[24:40, 16:48] == 0).all()
    pixels[24:40, 16:48] = 255
    assert (pixels == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_upright_as_pillow_turns_them(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(as_file(Image.fromarray(pixels), "PNG", exif=exif))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn_upright(pixels, orientation), expected)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_and_sizes_are_upright(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_file(soft_image(200, 100), file_format, exif=exif)
    image = prepare_image(data, replace(SETTINGS, image_format="png"))
    assert (image.original_width, image.original_height) == (100, 200)
    assert (image.width, image.height) == (64, 128)
    upright = soft_image(200, 100).transpose(Image.Transpose.ROTATE_270)
    reference = cv2.resize(np.asarray(upright), (64, 128), interpolation=cv2.INTER_AREA)
    assert psnr(stored_pixels(image.encoded), reference) > 30


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_of_the_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_file(soft_image(120, 80), "PNG", exif=exif)
    settings = replace(SETTINGS, resize_mode="no", image_format="png")
    plain = stored_pixels(prepare_image(data, settings).encoded).astype(int)
    blurred = stored_pixels(prepare_image(data, settings, boxes=[(0.0, 0.0, 0.2, 0.3)]).encoded)
    changed = np.argwhere(np.abs(plain - blurred).max(axis=2) > 0)
    height, width = plain.shape[:2]
    top, left = changed.min(axis=0)
    bottom, right = changed.max(axis=0)
    assert (top, left) == (0, 0)
    assert 0.3 * height <= bottom + 2 <= 0.6 * height
    assert 0.2 * width <= right + 2 <= 0.5 * width


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_transparent_pixels_lie_on_white(file_format: str) -> None:
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 32, 64))
    data = as_file(image, file_format, lossless=True)
    settings = replace(SETTINGS, image_format="png")
    pixels = stored_pixels(prepare_image(data, settings).encoded)
    assert (pixels[:, :32] == (0, 0, 255)).all()
    assert (pixels[:, 32:] == 255).all()


def test_a_transparent_colour_of_a_palette_lies_on_white() -> None:
    image = Image.new("P", (64, 64), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(0, (0, 0, 32, 64))
    data = as_file(image, "GIF", transparency=0)
    settings = replace(SETTINGS, image_format="png")
    pixels = stored_pixels(prepare_image(data, settings).encoded)
    assert (pixels[:, :32] == 255).all()
    assert (pixels[:, 32:] == (0, 255, 0)).all()


def test_sixteen_bits_keep_their_brightness() -> None:
    deep = np.full((64, 64), 0x8000, dtype=np.uint16)
    data = as_file(Image.fromarray(deep), "PNG")
    settings = replace(SETTINGS, image_format="png")
    assert (stored_pixels(prepare_image(data, settings).encoded) == 0x80).all()


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_other_colour_spaces_of_jpeg_become_rgb(mode: str) -> None:
    data = as_file(soft_image(64, 64, mode=mode), "JPEG", quality=95)
    pixels = stored_pixels(prepare_image(data, SETTINGS).encoded)
    reference = np.asarray(soft_image(64, 64, mode=mode).convert("RGB"))
    assert psnr(pixels, reference) > 30


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "lime", "blue")]
    data = as_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    settings = replace(SETTINGS, image_format="png")
    assert (stored_pixels(prepare_image(data, settings).encoded) == (255, 0, 0)).all()
    assert rejection_of(data, max_frames=2) is RejectReason.TOO_MANY_FRAMES


def test_limits_are_checked_in_the_header_before_any_pixel_is_decoded() -> None:
    # A PNG that says it is 30,000 x 30,000 and holds no pixel at all.
    data = bytearray(as_file(soft_image(8, 8), "PNG")[:33])
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = _crc(bytes(data[12:29]))
    with pytest.raises(SampleRejected) as caught:
        check_limits(read_header(bytes(data) + _chunk(b"IDAT", b"")), SETTINGS)
    assert caught.value.reason is RejectReason.TOO_MANY_PIXELS


def _crc(data: bytes) -> bytes:
    import zlib

    return zlib.crc32(data).to_bytes(4, "big")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + _crc(kind + data)


def test_small_and_elongated_images_are_left_out() -> None:
    data = as_file(soft_image(120, 10), "JPEG")
    assert rejection_of(data, min_side=11) is RejectReason.TOO_SMALL
    assert rejection_of(data, max_aspect_ratio=11.0) is RejectReason.TOO_ELONGATED
    assert rejection_of(data, max_pixels=1199) is RejectReason.TOO_MANY_PIXELS


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_a_cut_file_is_never_stored_in_part(file_format: str, share: float) -> None:
    data = as_file(soft_image(120, 80, seed=3), file_format)
    cut = data[: int(len(data) * share)]
    assert rejection_of(cut) is RejectReason.DECODE_FAILED


def test_a_cut_progressive_jpeg_is_never_stored_in_part() -> None:
    data = as_file(soft_image(640, 480, seed=3), "JPEG", progressive=True)
    assert rejection_of(data[: int(len(data) * 0.8)]) is RejectReason.DECODE_FAILED


def test_a_jpeg_of_very_many_scans_is_not_decoded() -> None:
    data = as_file(soft_image(64, 64), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    bomb = data[:start] + data[start:-2] * 60 + data[-2:]
    assert rejection_of(bomb) is RejectReason.DECODE_FAILED


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_the_same_file_gives_the_same_bytes(image_format: Any) -> None:
    data = as_file(soft_image(200, 150), "JPEG")
    settings = replace(SETTINGS, image_format=image_format)
    first, second = prepare_image(data, settings), prepare_image(data, settings)
    assert first == second
    suffix = {"jpg": "jpeg"}.get(image_format, image_format)
    assert sniff(first.encoded) == suffix


def test_the_pixel_hash_tells_pixels_and_shapes_apart() -> None:
    flat = np.zeros((2, 3, 3), dtype=np.uint8)
    other = flat.copy()
    other[0, 0, 0] = 1
    assert hash_pixels(flat) == hash_pixels(flat.copy())
    assert len({hash_pixels(flat), hash_pixels(other), hash_pixels(flat.reshape(3, 2, 3))}) == 3


def test_what_an_encoder_cannot_hold_is_rejected() -> None:
    data = as_file(Image.new("RGB", (20_000, 1)), "PNG")
    settings = {"resize_mode": "no", "max_aspect_ratio": 1e9, "image_format": "webp"}
    assert rejection_of(data, **settings) is RejectReason.DECODE_FAILED
