"""Pictures of any shape as squares of numbers."""

import resource

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    IMAGE_SIZE,
)
from training.model.image_processor import (
    IMAGE_MODES,
    AlignGPTImageProcessor,
    as_picture,
    as_rgb,
)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 47), (16, 16)])
@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_pixels_are_those_of_the_clip_image_processor(size, mode):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    ours = AlignGPTImageProcessor(IMAGE_SIZE, mean, std).pixels(image, mode)
    if mode == "pad":
        side = max(size)
        square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
        square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
        image = square
    clip = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE, image_mean=mean, image_std=std
    )
    theirs = clip(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_squash_keeps_everything_and_changes_shapes():
    image = Image.new("RGB", (20, 10), "white")
    image.paste("black", (0, 0, 10, 10))
    pixels = AlignGPTImageProcessor(8, [0, 0, 0], [1, 1, 1], "squash").pixels(image)
    assert pixels.shape == (3, 8, 8)
    assert pixels[:, :, 0].max() < 0.05 and pixels[:, :, 7].min() > 0.95


def test_transparent_parts_become_white_and_turned_pictures_upright():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    pixels = AlignGPTImageProcessor(8, [0, 0, 0], [1, 1, 1]).pixels(image)
    assert (pixels == 1).all()
    turned = Image.new("RGB", (8, 4), "white")
    turned.getexif()[0x0112] = 6
    padded = AlignGPTImageProcessor(8, [0, 0, 0], [1, 1, 1]).pixels(turned)
    assert (padded[:, :, :2] == 0).all() and (padded[:, :, 2:6] == 1).all()


@pytest.mark.parametrize("mode", IMAGE_MODES)
@pytest.mark.parametrize("size", [(300_000, 1), (1, 300_000)])
def test_a_picture_of_any_shape_is_made_square_in_little_memory(size, mode):
    picture = Image.linear_gradient("L").resize(size)
    picture = picture.crop((0, 0, *size)).convert("RGB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = AlignGPTImageProcessor(IMAGE_SIZE).pixels(picture, mode)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert pixels.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    assert grown < 2 * 2**20  # KB; the square of 300,000 pixels a side would have 270 GB


@pytest.mark.parametrize("size", [(1500, 20), (20, 1500)])
def test_a_long_picture_shows_what_it_did(size, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    picture, processor = Image.fromarray(noise), AlignGPTImageProcessor(IMAGE_SIZE)
    bounded = {mode: processor.pixels(picture, mode) for mode in ("pad", "crop")}
    monkeypatch.setattr("training.model.image_processor.MOST_RATIO", 1_000)
    assert np.allclose(processor.pixels(picture, "crop"), bounded["crop"], atol=0.05)
    monkeypatch.setattr("training.model.image_processor.MOST_SIDE", 1_000)
    assert np.allclose(processor.pixels(picture, "pad"), bounded["pad"], atol=0.2)


def test_an_unknown_image_mode_is_refused():
    with pytest.raises(ConfigError, match="image_mode"):
        AlignGPTImageProcessor(8, image_mode="stretch")


@pytest.mark.parametrize("kind", ["bytes", "fractions", "tensor", "channels first"])
def test_arrays_and_tensors_are_the_pictures_that_they_hold(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    given = {
        "bytes": pixels,
        "fractions": pixels / 255.0,
        "tensor": torch.from_numpy(pixels / np.float32(255)),
        "channels first": torch.from_numpy(pixels).permute(2, 0, 1),
    }[kind]
    assert np.array_equal(np.asarray(as_picture(given)), pixels)


def test_grey_arrays_are_pictures_too():
    grey = np.arange(10, dtype=np.uint8).reshape(2, 5)
    for given in (grey, grey[..., None], grey[None]):
        assert np.array_equal(np.asarray(as_picture(given)), grey)
    assert as_rgb(as_picture(grey)).mode == "RGB"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3, 5)), r"got an array of \(2, 3, 5\)"),
        (np.zeros(4), r"got an array of \(4,\)"),
        (np.full((2, 2), -0.5), "fractions of 0 to 1"),
        (np.full((2, 2), 1.5), "fractions of 0 to 1"),
        (np.full((2, 2), np.nan), "fractions of 0 to 1"),
        (np.full((2, 2), 256), "bytes of 0 to 255"),
        (np.zeros((0, 2)), "bytes of 0 to 255"),
    ],
)
def test_what_is_no_picture_says_what_one_is(values, message):
    with pytest.raises(ConfigError, match=message):
        as_picture(values)


def test_one_picture_and_several_come_as_a_batch():
    processor = AlignGPTImageProcessor(8)
    picture = Image.new("RGB", (20, 12), "red")
    assert processor(picture)["pixel_values"].shape == (1, 3, 8, 8)
    batch = np.zeros((4, 12, 20, 3), np.uint8)
    assert processor(batch)["pixel_values"].shape == (4, 3, 8, 8)
    assert processor([picture] * 2, image_mode="crop")["pixel_values"].shape == (2, 3, 8, 8)
