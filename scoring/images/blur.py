"""Boxes of a picture made unrecognisable: faces that were found elsewhere."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

MARGIN = 0.1
"""By which share of its diagonal a box grows on each side.

Source: Yang et al., A Study of Face Obfuscation in ImageNet (arXiv:2103.06191), section 4.
"""

SIGMA = 0.1
"""Standard deviation of the blur, as a share of the longest diagonal; same source."""

FULL_SIGMA = 8.0
"""Standard deviation up to which a picture is blurred in its own size. The time for a pixel grows
with it: a face that fills a picture of 1024 x 1024 would take a core ten seconds."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, from 0 to 1 of the picture's width and height."""


def blur_boxes(pixels: NDArray[np.uint8], boxes: Sequence[Box]) -> NDArray[np.uint8]:
    """Returns the picture with all that lies in the boxes blurred, their whole area alike.

    Args:
        pixels: (H, W, 3), upright.
    """
    if not boxes:
        return pixels
    height, width = pixels.shape[:2]
    sides = [(box[0] * width, box[1] * height, box[2] * width, box[3] * height) for box in boxes]
    diagonals = [float(np.hypot(right - left, low - top)) for left, top, right, low in sides]
    # Below two pixels a blur would leave a tiny face as it is.
    sigma = max(2.0, SIGMA * max(diagonals))
    marks = np.zeros((height + 1, width + 1), np.int32)
    for (left, top, right, low), diagonal in zip(sides, diagonals, strict=True):
        grown = MARGIN * diagonal
        first, last = max(0, int(top - grown)), min(height, int(np.ceil(low + grown)))
        begin, end = max(0, int(left - grown)), min(width, int(np.ceil(right + grown)))
        # Sums from the upper left corner on are then 1 or more within, however many boxes overlap.
        marks[first, begin] += 1
        marks[last, end] += 1
        marks[first, end] -= 1
        marks[last, begin] -= 1
    is_within = marks.cumsum(0, out=marks).cumsum(1, out=marks)[:-1, :-1] > 0
    return np.where(is_within[..., None], _blurred(pixels, sigma), pixels)


def _blurred(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """Returns the picture blurred, by way of a smaller one where the blur leaves no detail."""
    height, width = pixels.shape[:2]
    factor = max(1.0, sigma / FULL_SIGMA)
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    if small == (width, height):
        return cv2.GaussianBlur(pixels, (0, 0), sigma)  # type: ignore[return-value]
    reduced = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    reduced = cv2.GaussianBlur(reduced, (0, 0), sigma / factor)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]
