"""Images as bytes and as arrays: what they are, decoded, upright, on white, resized, encoded."""

import functools
import hashlib
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin

from schemas.errors import RejectReason, SampleRejected
from scoring.images.blur import blur_boxes
from scoring.images.color import MAX_PROFILE_BYTES, as_srgb, conversion
from scoring.images.jpeg import count_scans, decode_mending, without_junk
from scoring.images.plain import is_plain
from scoring.images.png import without_texts
from scoring.images.scaling import Pixels, resize, resize_reduced, scale_divisor
from scoring.images.settings import Box, ImageSettings
from scoring.images.sniff import SNIFFED_BYTES, require_image
from scoring.images.thumbnails import thumbnail
from scoring.images.webp import with_true_length

# Pillow's own limit warns and raises at a fixed size; ours is checked in the header, by settings.
Image.MAX_IMAGE_PIXELS = None
# Of packed texts and profiles; Pillow's own limit is below that of printers' profiles.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_PROFILE_BYTES

MAX_JPEG_SCANS = 200
"""Scans of a progressive JPEG; ordinary encoders make about ten, a bomb makes thousands.

Source: the limit of 500 that libjpeg-turbo's own fuzzers set, lowered.
"""

PILLOW_FORMATS = {
    "jpeg": ("JPEG",),  # of several pictures (MPO) too
    "png": ("PNG",),
    "webp": ("WEBP",),
    "gif": ("GIF",),
    "bmp": ("BMP",),
    "tiff": ("TIFF",),
    "avif": ("AVIF",),
}

SNIFFED_NAMES = {"jpg": "jpeg", "png": "png", "webp": "webp"}
"""Format as it is configured to format as `sniff` names it."""

BROKEN_FILE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    cv2.error,
    struct.error,
    zlib.error,
)
"""What Pillow, OpenCV and libjpeg-turbo raise on files that are not what they say."""

EXIF_ORIENTATION = 0x0112

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's names of pixels with one channel of colour."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says of itself before anything is decoded."""

    file_format: str
    """One of the keys of `PILLOW_FORMATS`."""
    width: int
    """As stored in the file, before it is turned upright; in pixels."""
    height: int
    orientation: int
    """EXIF orientation, 1 to 8; 1 is upright."""
    frames: int
    mode: str
    """Pillow's name of the pixel layout."""
    profile: bytes | None = None
    """Its ICC profile, which says what its colours are; None if they are sRGB's."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height once turned upright."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it is stored."""

    encoded: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    pixel_hash: str
    """128-bit hash of the pixels given to the encoder, 32 hex digits."""
    thumbnail: bytes
    """Small copy of those pixels, by which duplicates are told from what is merely alike."""


def prepare_image(
    data: bytes,
    settings: ImageSettings,
    is_stored: bool = False,
    boxes: Sequence[Box] = (),
) -> PreparedImage:
    """Returns the image in `data`, checked, upright, flattened on white, resized and encoded.

    Args:
        is_stored: whether it comes from a dataset. A file that already is what would be stored,
            holds nothing but its picture and decodes without a fault, then stays as it is:
            encoding it anew would only lose quality.
        boxes: to blur, in the upright picture.

    Raises:
        SampleRejected: if it is no image, breaks a limit or does not decode completely.
    """
    header = read_header(data)
    check_limits(header, settings)
    original_width, original_height = header.upright_size
    target = scaled_size(original_width, original_height, settings)
    stored_target = (target[1], target[0]) if header.orientation >= 5 else target
    pixels, is_sound = decode(data, header, stored_target)
    if pixels.shape[1] < header.width:
        pixels = resize_reduced(pixels, (header.width, header.height), stored_target)
    else:
        pixels = resize(pixels, stored_target)
    pixels = as_srgb(pixels, header.profile, header.mode in GREY_MODES)
    pixels = blur_boxes(turn_upright(pixels, header.orientation), boxes)
    pixels = frame(pixels, settings)
    height, width = pixels.shape[:2]
    fits = header.orientation == 1 and (width, height) == (header.width, header.height)
    is_wanted = header.file_format == SNIFFED_NAMES[settings.image_format]
    is_kept = (
        not boxes and is_stored and is_sound and fits and is_wanted and header.mode in ("RGB", "L")
    )
    is_kept = is_kept and is_plain(data, header.file_format)
    return PreparedImage(
        encoded=data if is_kept else encode(pixels, settings),
        width=width,
        height=height,
        original_width=original_width,
        original_height=original_height,
        pixel_hash=hash_pixels(pixels),
        thumbnail=thumbnail(pixels),
    )


def read_header(data: bytes) -> ImageHeader:
    """Returns what the file says of itself. Decodes no pixels.

    Raises:
        SampleRejected: NOT_AN_IMAGE or DECODE_FAILED.
    """
    file_format = require_image(data[:SNIFFED_BYTES])
    try:
        return _read_header(data, file_format)
    except BROKEN_FILE_ERRORS as error:
        if (tidy := _tidy(data, file_format)) != data:
            return read_header(tidy)
        raise _broken(file_format, "header", error) from error


def _tidy(data: bytes, file_format: str) -> bytes:
    """Returns a file that could not be read without what is no picture in it."""
    if file_format == "jpeg":
        return without_junk(data)
    if file_format == "webp":
        return with_true_length(data)
    if file_format == "avif":  # Pillow asks for a major brand that not all writers set
        return data[:8] + b"avif" + data[12:]
    return without_texts(data) if file_format == "png" else data


def _read_header(data: bytes, file_format: str) -> ImageHeader:
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS[file_format]) as image:
        frames = 1 if file_format == "jpeg" else int(getattr(image, "n_frames", 1))
        return ImageHeader(
            file_format=file_format,
            width=image.width,
            height=image.height,
            # Of a TIFF, Pillow says the size as shown, and turns the pixels itself.
            orientation=1 if file_format == "tiff" else _orientation(image),
            frames=frames,
            mode=image.mode,
            profile=_profile(image),
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except BROKEN_FILE_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _profile(image: Image.Image) -> bytes | None:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile else None


def _broken(file_format: str, part: str, error: BaseException) -> SampleRejected:
    reason = RejectReason.DECODE_FAILED
    return SampleRejected(reason, f"{file_format} {part}: {type(error).__name__}: {error}"[:300])


def check_limits(header: ImageHeader, settings: ImageSettings) -> None:
    """Raises `SampleRejected` if the image is too large, too small, too long or too animated."""
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise SampleRejected(RejectReason.DECODE_FAILED, f"{width}x{height} pixels")
    if width * height > settings.max_pixels:
        detail = f"{width}x{height} pixels, allowed are {settings.max_pixels}"
        raise SampleRejected(RejectReason.TOO_MANY_PIXELS, detail)
    if header.frames > settings.max_frames:
        detail = f"{header.frames} frames, allowed are {settings.max_frames}"
        raise SampleRejected(RejectReason.TOO_MANY_FRAMES, detail)
    if min(width, height) < settings.min_side:
        detail = f"{width}x{height} pixels, the shortest side must have {settings.min_side}"
        raise SampleRejected(RejectReason.TOO_SMALL, detail)
    if max(width, height) > settings.max_aspect_ratio * min(width, height):
        detail = f"{width}x{height} pixels, ratio allowed up to {settings.max_aspect_ratio}"
        raise SampleRejected(RejectReason.TOO_ELONGATED, detail)


def scaled_size(width: int, height: int, settings: ImageSettings) -> tuple[int, int]:
    """Returns the width and height that an image is scaled to, before a crop or a border."""
    if settings.resize_mode == "no":
        return width, height
    is_longest = settings.resize_mode in ("keep_ratio_largest", "border")
    side = max(width, height) if is_longest else min(width, height)
    if side == settings.image_size or (side < settings.image_size and not settings.can_upscale):
        return width, height
    factor = settings.image_size / side
    return max(1, round(width * factor)), max(1, round(height * factor))


def decode(data: bytes, header: ImageHeader, target: tuple[int, int]) -> tuple[Pixels, bool]:
    """Returns the first frame as RGB, transparent parts on white, as stored (not yet upright).

    A JPEG more than twice as large as `target` is decoded at a half, a quarter or an eighth of its
    size, always somewhat larger than the target.

    Args:
        target: width and height that it will be resized to.

    Returns:
        (H, W, 3), uint8; and whether nothing had to be mended for them.

    Raises:
        SampleRejected: DECODE_FAILED, also where only a part of the image can be decoded.
    """
    try:
        if header.file_format == "jpeg" and header.mode in ("RGB", "L"):
            return _decode_jpeg(data, header, target)
        return _decode_by_pillow(data, header), True
    except BROKEN_FILE_ERRORS as error:
        is_container = header.file_format in ("png", "webp", "avif")
        if is_container and (tidy := _tidy(data, header.file_format)) != data:
            return decode(tidy, header, target)[0], False
        raise _broken(header.file_format, "pixels", error) from error


def _decode_by_pillow(data: bytes, header: ImageHeader) -> Pixels:
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS[header.file_format]) as image:
        image.load()
        return _as_rgb(image, header.profile)


def _decode_jpeg(data: bytes, header: ImageHeader, target: tuple[int, int]) -> tuple[Pixels, bool]:
    scans = count_scans(data)
    if scans > MAX_JPEG_SCANS:
        raise ValueError(f"{scans} scans, allowed are {MAX_JPEG_SCANS}")
    width, height = header.width, header.height
    divisor = scale_divisor((width, height), target)
    strictly = functools.partial(
        simplejpeg.decode_jpeg,
        colorspace="RGB",
        min_height=-(-height // divisor),
        min_width=-(-width // divisor),
        strict=True,
    )
    return decode_mending(data, strictly)


def _as_rgb(image: Image.Image, profile: bytes | None) -> Pixels:
    if image.mode == "CMYK" and profile is not None:
        to_srgb = conversion(profile)
        if to_srgb is not None and to_srgb.mode == "CMYK":
            return np.asarray(to_srgb(image))
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        deep = np.asarray(image).astype(np.int64)
        shallow = (np.clip(deep, 0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(shallow[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.has_transparency_data:
        upper = image.convert("RGBA")
        white = Image.new("RGBA", upper.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, upper).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Returns the image turned and mirrored as its EXIF orientation asks.

    Source: Exif 2.32, tag 0x0112.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def frame(pixels: Pixels, settings: ImageSettings) -> Pixels:
    """Returns the image cut to its middle, or on a white square, if its resize mode asks so.

    A center crop of an image smaller than `image_size`, not enlarged, keeps its smaller side.
    """
    size = settings.image_size
    height, width = pixels.shape[:2]
    if settings.resize_mode == "center_crop":
        top, left = max(0, (height - size) // 2), max(0, (width - size) // 2)
        return np.ascontiguousarray(pixels[top : top + size, left : left + size])
    if settings.resize_mode == "border":
        top, left = (size - height) // 2, (size - width) // 2
        square = np.full((size, size, 3), 255, dtype=np.uint8)
        square[top : top + height, left : left + width] = pixels
        return square
    return pixels


def encode(pixels: Pixels, settings: ImageSettings) -> bytes:
    """Returns the image as a file, the same bytes for the same pixels and settings.

    Args:
        pixels: (H, W, 3), RGB, uint8.
    """
    try:
        return _encode(pixels, settings)
    except BROKEN_FILE_ERRORS as error:
        detail = f"{pixels.shape[1]}x{pixels.shape[0]} as {settings.image_format}: {error}"
        raise SampleRejected(RejectReason.DECODE_FAILED, detail[:300]) from error


def _encode(pixels: Pixels, settings: ImageSettings) -> bytes:
    if settings.image_format == "jpg":
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels, quality=settings.image_quality, colorspace="RGB", colorsubsampling="420"
        )
        return encoded
    options = {
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 6],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, settings.image_quality],
    }[settings.image_format]
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    is_encoded, file = cv2.imencode(f".{settings.image_format}", bgr, options)
    if not is_encoded:
        raise ValueError("the encoder refused")
    return file.tobytes()


def hash_pixels(pixels: Pixels) -> str:
    """Returns 32 hex digits that tell an image's pixels and shape apart from any other's."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
