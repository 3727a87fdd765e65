import cv2
import numpy as np

from scoring.images.blur import blur_boxes


def test_all_of_a_box_and_a_margin_is_blurred_and_nothing_else():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3)).astype(np.uint8)
    result = blur_boxes(pixels, [(0.25, 0.2, 0.5, 0.6), (0.99, 0.98, 1.0, 1.0)])
    inside = result[20:60, 50:100].astype(float)
    assert inside.std() < 0.1 * pixels[20:60, 50:100].std()
    changed = np.argwhere((result != pixels).any(axis=2))
    first = changed[changed[:, 1] < 150]
    margin = 0.1 * np.hypot(50, 40)
    assert np.abs(first.min(axis=0) - [20 - margin, 50 - margin]).max() < 2
    assert np.abs(first.max(axis=0) - [60 + margin, 100 + margin]).max() < 2
    assert (result[99, 199] != pixels[99, 199]).any()
    assert blur_boxes(pixels, []) is pixels


def test_a_wide_blur_by_way_of_a_smaller_picture_is_the_same_to_the_eye():
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    pixels = cv2.resize(coarse, (400, 300), interpolation=cv2.INTER_NEAREST)
    result = blur_boxes(pixels, [(0.0, 0.0, 1.0, 1.0)])
    exact = cv2.GaussianBlur(pixels, (0, 0), 0.1 * 500)
    assert np.abs(result.astype(int) - exact).max() <= 6
    assert result.shape == pixels.shape


def test_boxes_that_overlap_are_blurred_as_one_area():
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    boxes = [(0.1, 0.1, 0.6, 0.6), (0.1, 0.1, 0.6, 0.6), (0.4, 0.3, 0.9, 0.8)]
    result = blur_boxes(pixels, boxes)
    changed = (result != pixels).any(axis=2)
    assert changed[30:34, 20:60].mean() > 0.95
    assert not changed[55:, :8].any()
    assert not changed[:2, 70:].any()
