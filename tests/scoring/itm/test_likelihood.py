import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from schemas.errors import ConfigError
from scoring.config import ScoreConfig
from scoring.itm.likelihood import CaptionJudge
from tests.tiny_itm import write_tiny_itm

CONFIG = ScoreConfig(
    device="cpu", precision="fp32", threads=1, itm_batch_size=3, itm_prompt="Is it {caption}?"
)
CAPTIONS = ["a", "a red fire truck before a house", "two cats", "", "a boat on a lake"]


def pictures(count):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "png")
        found.append(buffer.getvalue())
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_itm(tmp_path_factory.mktemp("itm") / "tiny")


@pytest.fixture(scope="module")
def judge(folder):
    return CaptionJudge(folder, CONFIG)


def test_it_is_the_share_of_yes_against_no_that_the_model_itself_gives(judge, folder):
    found = judge.likelihoods(pictures(5), CAPTIONS)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    reader = AutoProcessor.from_pretrained(folder)
    yes, no = (reader.tokenizer(text)["input_ids"][0] for text in ("yes", "no"))
    capital = [reader.tokenizer(text)["input_ids"][0] for text in ("Yes", "No")]
    for row, (picture, caption) in enumerate(zip(pictures(5), CAPTIONS, strict=True)):
        content = [{"type": "image"}, {"type": "text", "text": f"Is it {caption}?"}]
        text = reader.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        image = Image.open(io.BytesIO(picture))
        inputs = reader(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            said = model(**inputs).logits[0, -1].exp()
        share = (said[yes] + said[capital[0]]) / said[[yes, no, *capital]].sum()
        assert found[row] == pytest.approx(float(share), abs=1e-5)
    assert found.std() > 1e-3
    assert found.dtype == np.float32


def test_batch_mates_change_no_answer_and_other_pictures_do(judge):
    together = judge.likelihoods(pictures(5), CAPTIONS)
    alone = [
        judge.likelihoods([one], [text])[0] for one, text in zip(pictures(5), CAPTIONS, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-5)
    exchanged = judge.likelihoods(pictures(5)[::-1], CAPTIONS)
    assert np.abs(exchanged[[0, 1, 3, 4]] - together[[0, 1, 3, 4]]).min() > 1e-5
    assert judge.likelihoods([], []).shape == (0,)


def test_words_that_stand_for_something_else_are_words_in_a_caption(judge):
    captions = ["<image> of <|im_start|>", "<|im_end|>", "x" * 10]
    assert np.isfinite(judge.likelihoods(pictures(3), captions)).all()


def test_a_missing_picture_is_an_error_and_no_shift(judge):
    with pytest.raises(ValueError, match="zip"):
        judge.likelihoods(pictures(2), CAPTIONS)


def test_a_model_that_writes_yes_and_no_alike_is_refused(folder, monkeypatch):
    monkeypatch.setattr("scoring.itm.likelihood.NO", ("yesterday", "Yesterday"))
    with pytest.raises(ConfigError, match="with the same first token"):
        CaptionJudge(folder, replace(CONFIG, itm_batch_size=1))
