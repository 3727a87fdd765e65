import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from schemas.errors import ConfigError
from scoring.config import RecaptionConfig, ScoreConfig
from scoring.itm.writer import CaptionWriter, check_writer, shared_writer
from tests.tiny_itm import write_tiny_writer

SCORE = ScoreConfig(device="cpu", precision="fp32", threads=1)


def pictures(count):
    found = []
    for seed in range(count):
        colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((16, 16), Image.Resampling.NEAREST).save(buffer, "png")
        found.append(buffer.getvalue())
    return found


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_tiny_writer(tmp_path_factory.mktemp("itm") / "writer")
    return RecaptionConfig(model=folder, prompt="What is it?", batch_size=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def writer(config):
    return CaptionWriter(config, SCORE)


def test_it_writes_what_the_model_holds_most_likely_token_by_token(writer, config):
    model = LlavaForConditionalGeneration.from_pretrained(config.model).eval()
    reader = AutoProcessor.from_pretrained(config.model)
    shut = model.generation_config.suppress_tokens
    ends = set(model.generation_config.eos_token_id) | {reader.tokenizer.eos_token_id}
    content = [{"type": "image"}, {"type": "text", "text": config.prompt}]
    text = reader.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    for picture, found in zip(pictures(4), writer.write(pictures(4)), strict=True):
        inputs = reader(images=Image.open(io.BytesIO(picture)), text=text, return_tensors="pt")
        said: list[int] = []
        while len(said) < 12 and not ends.intersection(said):
            ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
            with torch.no_grad():
                logits = model(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixel_values=inputs["pixel_values"],
                ).logits[0, -1]
            logits[shut] = -torch.inf
            said.append(int(logits.argmax()))
        is_finished = bool(ends.intersection(said))
        assert found.is_finished == is_finished
        assert found.text == reader.tokenizer.decode(said[:-1] if is_finished else said)


def test_batch_mates_change_nothing_and_each_picture_has_its_own_caption(writer):
    told: list[int] = []
    together = writer.write(pictures(10), told.append)
    assert told == [4, 8, 10]
    assert together == [writer.write([one])[0] for one in pictures(10)]
    assert together[::-1] == writer.write(pictures(10)[::-1])
    assert len({one.text for one in together}) > 1
    assert writer.write([]) == []


def test_what_is_cut_short_is_not_finished(writer, config):
    whole = writer.write(pictures(10))
    short = CaptionWriter(replace(config, max_new_tokens=1), SCORE).write(pictures(10))
    for full, cut in zip(whole, short, strict=True):
        assert cut.is_finished == (full.text == "")
        assert full.text.startswith(cut.text)
    assert not all(cut.is_finished for cut in short)


def test_a_model_is_loaded_once_in_a_process_and_one_that_is_none_is_refused(config, tmp_path):
    score = replace(SCORE, threads=2)
    assert shared_writer(config, score) is shared_writer(config, score)
    wrong = replace(config, model=str(tmp_path))
    with pytest.raises(ConfigError, match=r"recaption\.model .* is no image-text-to-text model"):
        check_writer(wrong, SCORE, runs_here=True)
    with pytest.raises(ConfigError, match=r"recaption\.model no/such/model is neither a folder"):
        check_writer(replace(config, model="no/such/model"), SCORE, runs_here=True)
