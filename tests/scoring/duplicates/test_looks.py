from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.looks.run import planted
from scoring.config import DeduplicateConfig, ImageSettings
from scoring.duplicates.looks import Looks
from scoring.images.prepare import prepare_image

STAMPS = Path(__file__).parents[3] / "examples/corpus/images"
LIMIT = DeduplicateConfig().look_difference
DIFFERENT = [
    ("town/roadsigns/stoplight_01_red.png", "town/roadsigns/stoplight_03_green.png"),
    ("town/roadsigns/stoplight_01_red.png", "town/roadsigns/stoplight_02_yellow.png"),
    ("symbols/math/operators/op6_lessthan.png", "symbols/math/operators/op7_greaterthan.png"),
    (
        "symbols/alphabets/english/filled/lowercase/d_filled.png",
        "symbols/alphabets/english/filled/lowercase/b_filled.png",
    ),
    ("seasonal/hanukkah/dreydl-gimmel.png", "seasonal/hanukkah/dreydl-nun.png"),
]


def looks(files):
    settings = ImageSettings(image_size=224)
    return Looks(pa.array([prepare_image(data, settings).thumbnail for data in files]))


@pytest.fixture(scope="module")
def stamps():
    return looks([(STAMPS / name).read_bytes() for pair in DIFFERENT for name in pair])


def test_another_light_sign_or_letter_is_no_duplicate(stamps):
    left = np.arange(len(DIFFERENT)) * 2
    assert (stamps.differences(left, left + 1) > LIMIT).all()
    assert not stamps.are_alike(left, left + 1, LIMIT).any()


def test_a_copy_saved_anew_halved_cut_or_recoloured_looks_alike_and_a_mirrored_one_does_not():
    sign = STAMPS / "symbols/math/operators/op6_lessthan.png"
    copies = dict(planted(sign, seed=1))
    found = looks([sign.read_bytes(), *copies.values()])
    rows = np.arange(1, len(copies) + 1)
    alike = found.are_alike(np.zeros_like(rows), rows, LIMIT)
    assert dict(zip(copies, alike.tolist(), strict=True)) == {
        "JPEG 60": True,
        "half size": True,
        "cut by 5 %": True,
        "colours shifted": True,
        "mirrored": False,
    }


@pytest.mark.slow
def test_a_difference_depends_on_neither_order_nor_company(stamps):
    left, right = (side.ravel() for side in np.meshgrid(np.arange(10), np.arange(10)))
    together = stamps.differences(left, right).reshape(10, 10)
    assert np.array_equal(together, together.T)
    assert np.diag(together).max() < 1e-3
    alone = [stamps.differences(np.array([i]), np.array([7]))[0] for i in range(10)]
    assert np.array_equal(together[7], np.array(alone))
    assert np.array_equal(stamps.are_alike(left, right, LIMIT).reshape(10, 10), together <= LIMIT)


def test_a_missing_copy_has_no_difference_and_stops_no_duplicate():
    pixels = prepare_image((STAMPS / DIFFERENT[0][0]).read_bytes(), ImageSettings()).thumbnail
    some = Looks(pa.array([pixels, None]))
    rows = np.array([0]), np.array([1])
    assert np.isnan(some.differences(*rows)).all()
    assert some.are_alike(*rows, LIMIT).all()
