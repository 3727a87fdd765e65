"""Images brought to size: by area, and JPEGs decoded at a reduced scale nearly as if by area."""

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

LEAST_RATIO = 1.15
"""Ratio of the sides of a JPEG decoded at a reduced scale to the target's, at least.

Source: photographs of scikit-learn and of benchmarks/fetch/run.py at ratios of 1.003 to 1.95, at a
half, a quarter and an eighth: the lowest PSNR to a full decode with area resize, before encoding,
is 35 dB here, 36 at a ratio of 1.2, 39 at 1.4, and falls to 31 as the ratio falls to 1.
"""
AREA_FROM = 2.0
"""Ratio from which area does as well as blurred cubics."""
SIDE_WEIGHT_AT_HALF = 0.03
SIDE_WEIGHT_SLOPE = 0.14
"""The weight of a neighbour in the blur before cubics, at a ratio of 1, and how it grows with it.

What libjpeg decodes at a reduced scale is sharper than a mean over pixels. Area after it blurs a
second time, cubics alone alias; cubics after a light blur are up to 6 dB nearer to a full decode
with area resize. Fitted on the same photographs.
"""


def scale_divisor(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Returns by how much a JPEG's sides may be divided in decoding: 1, 2, 4 or 8.

    Args:
        size: width and height in the file.
        target: width and height that it will be resized to.
    """
    for divisor in (8, 4, 2):
        least = LEAST_RATIO * divisor
        if size[0] >= least * target[0] and size[1] >= least * target[1]:
            return divisor
    return 1


def resize(pixels: Pixels, target: tuple[int, int]) -> Pixels:
    """Returns the image at `target` (width, height): by area when shrinking, else by cubics."""
    height, width = pixels.shape[:2]
    if (width, height) == target:
        return pixels
    is_smaller = target[0] <= width and target[1] <= height
    interpolation = cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, target, interpolation=interpolation), dtype=np.uint8)


def resize_reduced(pixels: Pixels, size: tuple[int, int], target: tuple[int, int]) -> Pixels:
    """Returns a JPEG decoded at a reduced scale at `target`, near to a full decode with area.

    Args:
        pixels: (H, W, 3), each side the file's divided by 2, 4 or 8, rounded up.
        size: width and height in the file. Where they do not divide evenly, the last column or row
            stands for less than a whole pixel, which the scale takes into account.
        target: width and height, smaller than `pixels` by the ratio that `scale_divisor` leaves.
    """
    divisor = next(d for d in (2, 4, 8) if -(-size[0] // d) == pixels.shape[1])
    ratio = min(size[0] / target[0], size[1] / target[1]) / divisor
    across, down = (divisor * target[axis] / size[axis] for axis in (0, 1))
    if ratio < AREA_FROM:
        side = SIDE_WEIGHT_SLOPE * (ratio - 1) + (SIDE_WEIGHT_AT_HALF if divisor == 2 else 0.0)
        kernel = np.array([side, 1 - 2 * side, side], dtype=np.float32)
        blurred = cv2.sepFilter2D(pixels, -1, kernel, kernel)
        resized = cv2.resize(blurred, None, fx=across, fy=down, interpolation=cv2.INTER_CUBIC)
    else:
        resized = cv2.resize(pixels, None, fx=across, fy=down, interpolation=cv2.INTER_AREA)
    return np.asarray(resized[: target[1], : target[0]], dtype=np.uint8)
