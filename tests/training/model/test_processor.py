from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    PATCHES,
    build_tokenizer,
    text_config,
    vision_config,
)
from training.model.assemble import put_together
from training.model.inputs import lay_out
from training.model.processor import AlignGPTProcessor, leading_bos_token_id
from training.model.vision_tower import PretrainedTower


def picture(colour="red", size=(20, 12)):
    return Image.new("RGB", size, colour)


def build(adds_bos=True, **settings):
    tokenizer = build_tokenizer(adds_bos)
    torch.manual_seed(0)
    config = vision_config()
    tower = PretrainedTower(
        backbone=transformers.CLIPVisionModel(config),
        config=config,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    language_model = transformers.LlamaForCausalLM(text_config(vocab_size=len(tokenizer)))
    model, processor = put_together(tower, language_model, tokenizer, num_levels=4, **settings)
    return model.eval(), processor


def test_placeholders_get_ids_beyond_the_language_models_words():
    model, processor = build()
    vocab_size = model.config.text_config.vocab_size
    ids = {processor.placeholders.image_token_id, processor.placeholders.align_token_id}
    assert ids == {vocab_size, vocab_size + 1}
    assert processor.placeholders == model.config.placeholders
    assert model.get_input_embeddings().num_embeddings == vocab_size


def test_a_tokenizer_that_adds_bos_has_align_after_it_and_another_has_it_first():
    for adds_bos in (True, False):
        _, processor = build(adds_bos)
        ids = processor(text="<image>\nwhat", images=picture())["input_ids"][0].tolist()
        layout = processor.placeholders
        assert ids.index(layout.align_token_id) == (1 if adds_bos else 0)
        assert ids.count(layout.image_token_id) == PATCHES
        assert leading_bos_token_id(processor.tokenizer) == (1 if adds_bos else None)


def test_the_processor_lays_a_text_out_as_the_data_loader_does():
    _, processor = build()
    token_ids = processor.tokenizer("<image>\nwhat is this?")["input_ids"]
    expected = lay_out(token_ids, [False] * len(token_ids), processor.placeholders)
    inputs = processor(text="<image>\nwhat is this?", images=picture())
    assert inputs["input_ids"][0].tolist() == expected.input_ids
    assert inputs["prompt_mask"][0].tolist() == expected.prompt_mask


def test_text_alone_gets_no_align_and_no_pixels():
    _, processor = build()
    inputs = processor(text="what")
    assert set(inputs) == {"input_ids", "attention_mask", "prompt_mask"}
    assert inputs["input_ids"][0].tolist() == processor.tokenizer("what")["input_ids"]


def test_texts_and_images_must_agree():
    _, processor = build()
    with pytest.raises(ConfigError, match="1 times <image> for 2 images"):
        processor(text="<image> what", images=[picture(), picture()])
    with pytest.raises(ConfigError, match="1 times <image> for 0 images"):
        processor.apply_chat_template([{"role": "user", "content": "<image>"}], tokenize=True)
    with pytest.raises(ConfigError, match="<align>"):
        processor(text="say <align>")


def test_bos_is_written_once_if_the_text_brings_it():
    _, processor = build()
    assert (
        processor(text="<s>what")["input_ids"].tolist()
        == processor(text="what")["input_ids"].tolist()
    )


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_prompts_is_answered_like_each_alone(adds_bos, side):
    model, processor = build(adds_bos)
    texts = ["<image>\nwhat is this", "say something longer than that", "<image><image> what"]
    images = [[picture("red")], [], [picture("blue"), picture("green")]]
    inputs = processor(text=texts, images=images, padding_side=side)
    batch = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for row, (text, shown) in enumerate(zip(texts, images, strict=True)):
        alone = model.generate(
            **processor(text=text, images=shown),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
        )
        assert torch.equal(batch[row, -4:], alone[0, -4:])


def test_a_conversation_puts_pictures_before_the_words_of_their_message():
    _, processor = build(adds_bos=False)
    content = [{"type": "text", "text": "what is this?"}, {"type": "image", "image": picture()}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n<image>\nwhat is this?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        ("image", str),
        ("image", Path),
        ("path", Path),
        ("url", str),
        ("image_url", str),
        ("image_url", lambda path: {"url": path}),
    ],
)
def test_a_picture_is_named_by_path_or_url_in_any_of_the_usual_ways(kind, wrap, tmp_path):
    _, processor = build()
    path = tmp_path / "red.png"
    picture().save(path)
    part = {"type": "image_url" if kind == "image_url" else "image", kind: wrap(str(path))}
    content = [part, {"type": "text", "text": "what"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True
    )
    plain = processor(text="<image>", images=path)
    assert torch.equal(inputs["pixel_values"], plain["pixel_values"])


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_conversation_becomes_inputs_and_the_gate_reads_up_to_the_first_answer(adds_bos):
    model, processor = build(adds_bos)
    image = {"type": "image", "image": picture()}
    first = [{"role": "user", "content": [image, {"type": "text", "text": "what is this?"}]}]
    later = [
        *first,
        {"role": "assistant", "content": [{"type": "text", "text": "a red box"}]},
        {"role": "user", "content": "are you sure?"},
    ]
    settings = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    one, several = (processor.apply_chat_template(turns, **settings) for turns in (first, later))
    assert several["prompt_mask"].sum() == one["prompt_mask"].sum() > 5
    weights = [model(**inputs, output_gate_weights=True).gate_weights for inputs in (one, several)]
    torch.testing.assert_close(*weights)
    assert model.generate(**several, max_new_tokens=2).shape[1] > several["input_ids"].shape[1]


def test_the_gate_reads_what_the_templates_variables_put_before_the_first_answer():
    _, processor = build(adds_bos=False)
    template = "{{ persona }} {% for m in messages %}{{ m.content }} {% endfor %}"
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "a red box"}]
    settings = {"tokenize": True, "return_dict": True, "chat_template": template}
    short, long = (
        processor.apply_chat_template(turns, persona=persona, **settings)
        for persona in ("you", "you are a painter who never lies")
    )
    added = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    assert added > 0
    assert long["prompt_mask"].sum() - short["prompt_mask"].sum() == added


def test_settings_of_the_call_may_stand_in_processor_kwargs():
    _, processor = build(adds_bos=False)
    turns = [[{"role": "user", "content": text}] for text in ("what", "what is this red box?")]
    settings = {"tokenize": True, "return_dict": True}
    plain = processor.apply_chat_template(turns, padding=True, **settings)
    asked = {"return_tensors": "pt", "padding": True}
    given = processor.apply_chat_template(turns, processor_kwargs=asked, **settings)
    assert all(torch.equal(given[name], plain[name]) for name in plain)
    wide = {"return_tensors": None, "padding": "max_length", "max_length": 64}
    lists = processor.apply_chat_template(turns, padding=True, processor_kwargs=wide, **settings)
    assert [len(row) for row in lists["input_ids"]] == [64, 64]


def test_a_conversation_can_end_within_an_answer():
    _, processor = build(adds_bos=False)
    turns = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "a red"}]
    settings = {"tokenize": True, "return_dict": True, "continue_final_message": True}
    asked = processor.apply_chat_template(
        turns[:1], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    inputs = processor.apply_chat_template(turns, **settings)
    assert inputs["prompt_mask"].sum() == asked["prompt_mask"].sum()


def test_the_processor_survives_the_round_trip_and_the_auto_classes_know_it(tmp_path):
    model, processor = build(adds_bos=False, alignment_mode="none")
    processor.image_processor.image_mode = "crop"
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    for loaded in (
        AlignGPTProcessor.from_pretrained(tmp_path),
        transformers.AutoProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is AlignGPTProcessor
        assert loaded.placeholders == processor.placeholders == model.config.placeholders
        assert loaded.chat_template == processor.chat_template
        assert loaded.image_processor.image_mode == "crop"
        left, right = (p(text="<image>\nwhat", images=picture()) for p in (processor, loaded))
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_the_image_text_to_text_pipeline_answers(adds_bos, tmp_path):
    model, processor = build(adds_bos)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe: Any = transformers.pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is this?"}]
    answer = pipe(
        text=[{"role": "user", "content": content}],
        generate_kwargs={"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False},
        return_full_text=False,
    )[0]["generated_text"]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True,
        add_generation_prompt=True,
    )  # fmt: skip
    said = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    expected = processor.tokenizer.decode(said[0, -4:], skip_special_tokens=True)
    assert answer == expected
