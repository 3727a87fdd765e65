"""Boxes of a picture made unrecognisable: faces that were found elsewhere."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scoring.images.settings import Box

MARGIN = 0.1
"""By which share of its diagonal a box grows on each side.

Source: Yang et al., A Study of Face Obfuscation in ImageNet (arXiv:2103.06191), section 4.
"""

SIGMA = 0.1
"""Standard deviation of the blur, as a share of the longest diagonal; same source."""


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
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigma)
    result = pixels.copy()
    for (left, top, right, low), diagonal in zip(sides, diagonals, strict=True):
        grown = MARGIN * diagonal
        rows = slice(max(0, int(top - grown)), int(np.ceil(low + grown)))
        columns = slice(max(0, int(left - grown)), int(np.ceil(right + grown)))
        result[rows, columns] = blurred[rows, columns]
    return result
