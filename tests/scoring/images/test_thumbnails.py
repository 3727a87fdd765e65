import numpy as np
import pytest
import simplejpeg

from scoring.images.thumbnails import thumbnail


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(256, 300, 64), (71, 900, 64), (70, 70, 32), (20, 18, 16), (3, 1, 8)],
)
def test_a_copy_is_as_large_as_the_picture_has_pixels_for(height, width, side):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    copy = thumbnail(pixels)
    assert simplejpeg.decode_jpeg(copy, colorspace="RGB").shape == (side, side, 3)
    assert copy == thumbnail(pixels)
