"""Small copies of pictures, kept beside them: by these, duplicates are told from what is alike."""

import numpy as np
import simplejpeg

from scoring.images.scaling import Pixels, resize

SIDES = (64, 32, 16, 8)
"""Of a copy, in pixels: the largest that the picture has the pixels for. Source:
benchmarks/looks/run.py: at 32 the letter on a toy is lost."""
ENLARGED = 1.1
"""A copy's side is at most the picture's shortest divided by this, so that a picture and one of
half its size are compared at a size that both have."""
QUALITY = 85
THUMBNAIL_BYTES = 2048
"""What a copy takes in memory, about; on disk it is a third less."""


def thumbnail(pixels: Pixels) -> bytes:
    """Returns the small copy of a picture, squeezed to a square, as a JPEG file.

    Args:
        pixels: (H, W, 3), RGB, uint8.
    """
    shortest = min(pixels.shape[:2])
    side = next((side for side in SIDES if shortest >= ENLARGED * side), SIDES[-1])
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(resize(pixels, (side, side))),
        quality=QUALITY,
        colorspace="RGB",
        # Halved once more, the colours of a small copy would no longer be those of its places.
        colorsubsampling="420" if side == SIDES[0] else "444",
    )
    return encoded
