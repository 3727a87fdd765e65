"""What is asked of images, without the libraries that do it: a decoder starts in a moment."""

from dataclasses import dataclass
from typing import Literal

from schemas.shards import ImageFormat

ResizeMode = Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, from 0 to 1 of the picture's width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """Which images are taken, and how they are stored."""

    max_pixels: int = 64_000_000
    """Largest image decoded, checked in its header before decoding."""
    max_frames: int = 1000
    """Frames that an animation may have; the first is stored."""
    min_side: int = 0
    """Shortest side that an image must have as downloaded, in pixels."""
    max_aspect_ratio: float = 20.0
    """Longest side over shortest side, at most."""
    resize_mode: ResizeMode = "keep_ratio"
    """keep_ratio: shortest side to image_size; keep_ratio_largest: longest side; no: as it is."""
    image_size: int = 256
    """Target side, in pixels."""
    can_upscale: bool = False
    """Whether smaller images are enlarged."""
    image_format: ImageFormat = "jpg"
    """How images are stored."""
    image_quality: int = 95
    """Quality of jpg and webp, 1 to 100."""
