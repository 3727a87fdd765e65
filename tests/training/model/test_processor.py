from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from schemas.errors import ConfigError
from tests.training.model.tiny_models import (
    IMAGE_SIZE,
    PATCHES,
    build_tokenizer,
    text_config,
    vision_config,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.assemble import assemble, put_together
from training.model.image_processor import AlignGPTImageProcessor
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
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
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


def test_a_model_is_assembled_from_folders(tmp_path):
    model, _ = build()
    model.vision_tower.backbone.save_pretrained(tmp_path / "tower")
    transformers.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path / "tower")
    model.language_model.save_pretrained(tmp_path / "words")
    build_tokenizer(True).save_pretrained(tmp_path / "words")
    assembled, its_processor = assemble(
        str(tmp_path / "tower"), str(tmp_path / "words"), num_levels=5, chat_template="{{ 1 }}"
    )
    assert type(assembled) is AlignGPTForConditionalGeneration
    assert assembled.config.num_levels == 5
    assert its_processor.image_processor.image_mean == [0.1, 0.2, 0.3]
    assert its_processor.image_processor.image_size == IMAGE_SIZE
    assert its_processor.chat_template == "{{ 1 }}"
    for name, weight in model.language_model.state_dict().items():
        assert torch.equal(assembled.language_model.state_dict()[name], weight)
    inputs = its_processor(text="<image>what", images=picture())
    assert assembled.eval()(**inputs).logits.isfinite().all()


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


def test_an_unknown_image_mode_is_refused():
    with pytest.raises(ConfigError, match="image_mode"):
        AlignGPTImageProcessor(8, image_mode="stretch")
