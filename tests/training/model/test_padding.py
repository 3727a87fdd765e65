"""What callers of transformers' processors pass, passed to ours."""

import numpy as np
import pytest
import torch
from PIL import Image

from schemas.errors import ConfigError
from tests.training.model.test_processor import build, picture
from training.model.image_processor import AlignGPTImageProcessor

WITH_PICTURE = "<image>\nwhat is this, and what is that?"


def lengths(inputs):
    return inputs["attention_mask"].sum(dim=1).tolist(), inputs["input_ids"].shape[1]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_padded_to_max_length(side):
    _, processor = build()
    plain = processor(text=WITH_PICTURE, images=picture())["input_ids"][0].tolist()
    inputs = processor(
        text=WITH_PICTURE, images=picture(), padding="max_length", max_length=64, padding_side=side
    )
    assert lengths(inputs) == ([len(plain)], 64)
    kept = inputs["input_ids"][0][inputs["attention_mask"][0].bool()].tolist()
    assert kept == plain
    assert inputs["attention_mask"][0, 0].item() == (side == "right")
    assert inputs["prompt_mask"].shape == (1, 64)


def test_padding_to_max_length_cuts_nothing_by_itself():
    _, processor = build()
    plain = processor(text=WITH_PICTURE, images=picture())
    same = processor(text=WITH_PICTURE, images=picture(), padding="max_length", max_length=8)
    assert torch.equal(same["input_ids"], plain["input_ids"])


def test_a_padded_length_can_be_a_multiple():
    _, processor = build()
    assert processor(text="what", pad_to_multiple_of=16)["input_ids"].shape[1] == 16


def test_long_texts_lose_their_end_and_say_the_same_before_it():
    model, processor = build()
    texts = [WITH_PICTURE, "say something longer than that " * 4]
    plain = processor(text=texts, images=picture(), padding_side="right")
    inputs = processor(
        text=texts, images=picture(), padding_side="right", truncation=True, max_length=26
    )
    assert lengths(inputs)[1] == 26
    assert torch.equal(inputs["input_ids"], plain["input_ids"][:, :26])
    assert torch.equal(inputs["prompt_mask"], plain["prompt_mask"][:, :26])
    assert model(**inputs).logits.shape[1] == 26


def test_a_picture_is_never_cut():
    _, processor = build()
    needed = processor(text="<image>", images=picture())["input_ids"].shape[1]
    with pytest.raises(ConfigError, match=rf"max_length 5 would cut a picture.* {needed} tokens"):
        processor(text=WITH_PICTURE, images=picture(), truncation=True, max_length=5)
    inputs = processor(text=WITH_PICTURE, images=picture(), truncation=True, max_length=needed)
    assert lengths(inputs) == ([needed], needed)


def test_without_a_longest_length_truncation_asks_for_one():
    _, processor = build()
    with pytest.raises(ConfigError, match="pass max_length"):
        processor(text="what", truncation=True)
    processor.tokenizer.model_max_length = 4
    assert processor(text="what is this what is this", truncation=True)["input_ids"].shape[1] == 4


def test_rows_are_left_alone_if_asked():
    _, processor = build()
    texts = ["what", "what is this, and that"]
    rows = processor(text=texts, padding=False, return_tensors=None)["input_ids"]
    assert rows == [processor(text=text)["input_ids"][0].tolist() for text in texts]
    with pytest.raises(ConfigError, match="which is no tensor: pass padding=True"):
        processor(text=texts, padding=False)
    with pytest.raises(ConfigError, match="padding must be True, False or one of"):
        processor(text=texts, padding="shortest")


def test_the_chat_template_passes_such_settings_on():
    _, processor = build()
    processor.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is this"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        padding="max_length",
        max_length=40,
    )
    assert inputs["input_ids"].shape == (1, 40)
    nested = processor(text="what", text_kwargs={"padding": "max_length", "max_length": 9})
    assert nested["input_ids"].shape == (1, 9)


@pytest.mark.parametrize("kind", ["videos", "audio"])
def test_what_the_model_cannot_see_is_refused(kind):
    _, processor = build()
    with pytest.raises(ConfigError, match=f"takes no {kind}"):
        processor(text="what", **{kind: [np.zeros((2, 8, 8, 3), np.uint8)]})
    part = {"type": kind.removesuffix("s"), "path": "a"}
    with pytest.raises(ConfigError, match=f"a part of the type '{part['type']}'"):
        processor.apply_chat_template([{"role": "user", "content": [part]}], tokenize=True)


def forms(image):
    """The same picture as others hand it over."""
    pixels = np.array(image)
    first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return {
        "array": pixels,
        "channels first": first,
        "tensor": torch.from_numpy(first),
        "fractions": torch.from_numpy(first).float() / 255,
        "64-bit fractions": pixels / 255.0,
        "integers": first.astype(np.int64),
        "batch": torch.from_numpy(first)[None],
    }


@pytest.mark.parametrize("form", list(forms(picture())))
def test_arrays_and_tensors_give_what_the_picture_gives(form):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (21, 13, 3), dtype=np.uint8))
    _, processor = build()
    expected = processor(text="<image>", images=image)["pixel_values"]
    given = processor(text="<image>", images=forms(image)[form])["pixel_values"]
    assert torch.equal(given, expected)
    assert torch.equal(processor.image_processor(forms(image)[form])["pixel_values"], expected)


def test_low_precision_fractions_and_grey_pictures_are_taken():
    grey = Image.new("L", (9, 7), 100)
    processor = AlignGPTImageProcessor(image_size=16)
    expected = processor.pixels(grey)
    for values in (np.array(grey), np.array(grey)[None], torch.full((1, 7, 9), 100 / 255)):
        assert np.array_equal(processor.pixels(values), expected)
    close = processor.pixels(torch.full((3, 7, 9), 100 / 255, dtype=torch.bfloat16))
    assert np.abs(close - expected).max() < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 6, 7)), r"got an array of \(5, 6, 7\)"),
        (torch.zeros(3, 4, 4) - 1.0, "not normalised"),
        (torch.zeros(3, 4, 4) + 255.0, "not normalised"),
        (np.zeros(4), r"got an array of \(4,\)"),
        (np.full((4, 4, 3), np.nan), "not normalised"),
    ],
)
def test_other_numbers_are_no_picture(values, message):
    with pytest.raises(ConfigError, match=message):
        AlignGPTImageProcessor(image_size=16).pixels(values)
