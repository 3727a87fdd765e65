"""Folders that transformers' LLaVA opens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from schemas.errors import ConfigError
from tests.training.model.tiny_models import IMAGE_SIZE, build_model, build_tokenizer, text_config
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor
from training.model.published.to_llava_hf import save_llava_hf


def made(
    adds_bos: bool, text: str = "llama", softcap: float | None = None, **settings: Any
) -> tuple[Any, AlignGPTProcessor]:
    mode = settings.get("alignment_mode", "adaptive")
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(image_size=IMAGE_SIZE),
        tokenizer=build_tokenizer(adds_bos),
        num_image_tokens=16,
        has_align_token=mode != "none",
    )
    places = processor.placeholders
    capped = {} if softcap is None else {"final_logit_softcapping": softcap}
    model = build_model(
        text,
        text_config=text_config(text, vocab_size=300, **capped),
        image_token_id=places.image_token_id,
        align_token_id=places.align_token_id,
        leading_bos_token_id=places.bos_token_id,
        **settings,
    )
    return model, processor


TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "and"}, {"type": "image"}, {"type": "image"}],
    },
]


@pytest.mark.parametrize(
    ("mode", "adds_bos", "text", "projector"),
    [
        ("none", True, "llama", "mlp2x_gelu"),
        ("global", True, "qwen2", "linear"),
        ("average", False, "gemma", "mlp2x_gelu"),
    ],
)
def test_it_says_what_ours_says_to_the_same_turns_and_pictures(
    tmp_path: Path, mode: str, adds_bos: bool, text: str, projector: str
) -> None:
    settings: dict[str, Any] = {"insertion_scale": 4.0} if text == "gemma" else {}
    model, processor = made(
        adds_bos, text, alignment_mode=mode, projector_type=projector, **settings
    )
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    ours = processor.apply_chat_template(TURNS, add_generation_prompt=True)
    inputs = processor(images=pictures, text=ours, add_special_tokens=False)
    with torch.no_grad():
        wanted = model(**inputs).logits
    save_llava_hf(model, processor, tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    reader = AutoProcessor.from_pretrained(tmp_path)
    written = reader.apply_chat_template(TURNS, add_generation_prompt=True)
    assert written.replace("<align>", "") == ours
    found = reader(images=pictures, text=written, add_special_tokens=False, return_tensors="pt")
    assert found["input_ids"].tolist() == inputs["input_ids"].tolist()
    assert torch.allclose(found["pixel_values"], inputs["pixel_values"], atol=0.02)
    with torch.no_grad():
        said = theirs(
            input_ids=found["input_ids"],
            attention_mask=found["attention_mask"],
            pixel_values=inputs["pixel_values"],
        ).logits[..., : wanted.shape[-1]]
    assert torch.allclose(said, wanted, atol=1e-4 * float(wanted.abs().max()))
    text_alone = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert "<align>" not in reader.apply_chat_template(text_alone)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "alignment_mode adaptive"),
        ({"alignment_mode": "local"}, "alignment_mode local"),
        ({"alignment_mode": "global", "projector_type": "mlp3x_gelu"}, "mlp3x_gelu"),
        ({"alignment_mode": "global", "vision": "timm"}, "a timm tower"),
        ({"alignment_mode": "global", "text": "gemma2", "softcap": 0.5}, "otherwise"),
    ],
)
def test_what_has_no_such_form_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        save_llava_hf(*made(True, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()
