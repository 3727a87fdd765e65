import io

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from scoring.config import ImageSettings
from scoring.images.prepare import prepare_image, scaled_size
from scoring.images.scaling import resize_reduced, scale_divisor


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "divisor"),
    [
        ((801, 601), 2),
        ((821, 615), 2),
        ((957, 719), 2),
        ((1290, 969), 2),
        ((1643, 1233), 4),
        ((2333, 1751), 4),
        ((3275, 2457), 8),
        ((5003, 3755), 8),
    ],
)
def test_a_reduced_decode_comes_out_nearly_as_a_full_one_resized_by_area(
    size: tuple[int, int], divisor: int
) -> None:
    """At sizes that do not divide evenly, where a pixel at the border is only a part of one."""
    settings = ImageSettings(image_size=256, image_format="png")
    target = scaled_size(*size, settings)
    assert scale_divisor(size, target) == divisor
    for photo in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photo).resize(size).save(file, "JPEG", quality=92)
        stored = prepare_image(file.getvalue(), settings)
        full = simplejpeg.decode_jpeg(file.getvalue())
        by_area = cv2.resize(full, target, interpolation=cv2.INTER_AREA)
        ours = np.asarray(Image.open(io.BytesIO(stored.encoded)))
        assert psnr(ours, by_area) > 35


@given(
    width=st.integers(1, 6000),
    height=st.integers(1, 6000),
    image_size=st.integers(1, 600),
)
def test_a_reduced_image_has_exactly_the_size_of_the_target(
    width: int, height: int, image_size: int
) -> None:
    target = scaled_size(width, height, ImageSettings(image_size=image_size))
    divisor = scale_divisor((width, height), target)
    if divisor > 1:
        shape = (-(-height // divisor), -(-width // divisor), 3)
        reduced = np.full(shape, 7, dtype=np.uint8)
        resized = resize_reduced(reduced, (width, height), target)
        assert resized.shape == (target[1], target[0], 3)
        assert (resized == 7).all()


def test_a_small_image_is_decoded_in_full() -> None:
    assert scale_divisor((500, 400), (341, 256)) == 1
    assert scale_divisor((700, 520), (341, 256)) == 1
