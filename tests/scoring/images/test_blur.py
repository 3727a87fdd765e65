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
