"""Colours as they were meant: pictures with an ICC profile become sRGB.

A phone's pictures are in Display P3, a camera's may be in Adobe RGB, a printer's in CMYK. Without
their profile the same numbers are other colours. What says of itself that it is sRGB, within
rounding, or says nothing that can be read, keeps its numbers, as in browsers.
"""

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from scoring.images.scaling import Pixels

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Largest profile that is read; those of printing presses have up to 3 MB."""

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space as a profile names it to Pillow's mode of the pixels that it is for."""

DEVICES = ("mntr", "scnr", "prtr", "spac")
"""Classes of profiles that say what a device's colours are. Source: ICC.1:2022, section 7.2.5."""

NEUTRAL_LEVELS = 2
"""Levels of 255 by which a profile may differ from sRGB and count as it.

Source: LittleCMS rounds twice, and published sRGB profiles differ by one level among themselves.
"""

GRID = np.arange(0, 256, 15, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class ToSrgb:
    """Turns pixels that a profile is for into sRGB."""

    mode: str
    """Pillow's mode of what it takes."""
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns an image of `mode` as sRGB, its mode RGB."""
        converted = ImageCms.applyTransform(image, self.transform)
        assert converted is not None  # it is not asked to work in place
        return converted


def as_srgb(pixels: Pixels, profile: bytes | None, is_grey: bool) -> Pixels:
    """Returns RGB pixels (H, W, 3) as sRGB, by the profile of the file that they come from.

    Args:
        is_grey: whether the file has one channel of colour, which a profile for grey is about.
    """
    to_srgb = conversion(profile) if profile is not None else None
    if to_srgb is None or to_srgb.mode == "CMYK":
        return pixels
    if to_srgb.mode == "RGB":
        return np.asarray(to_srgb(Image.fromarray(pixels)))
    if not is_grey:
        return pixels
    return np.asarray(to_srgb(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0]))))


@functools.lru_cache(maxsize=16)
def conversion(profile: bytes) -> ToSrgb | None:
    """Returns what turns pixels of a profile into sRGB; None if they should stay as they are."""
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = MODES.get(source.profile.xcolor_space.strip())
        if mode is None or source.profile.device_class not in DEVICES:
            return None
        is_print = mode == "CMYK"
        intent = ImageCms.Intent.PERCEPTUAL if is_print else ImageCms.Intent.RELATIVE_COLORIMETRIC
        target = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB", intent)
        found = ToSrgb(mode, transform)
        return None if not is_print and _is_neutral(found) else found
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _is_neutral(to_srgb: ToSrgb) -> bool:
    """Returns whether a conversion changes next to nothing."""
    if to_srgb.mode == "L":
        levels = np.arange(256, dtype=np.uint8)[None, :]
        before = np.repeat(levels[:, :, None], 3, axis=2)
        after = np.asarray(to_srgb(Image.fromarray(levels)))
    else:
        before = np.stack(np.meshgrid(GRID, GRID, GRID), axis=-1).reshape(1, -1, 3)
        after = np.asarray(to_srgb(Image.fromarray(before)))
    return int(np.abs(after.astype(int) - before.astype(int)).max()) <= NEUTRAL_LEVELS
