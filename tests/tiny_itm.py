"""A tiny image-text-to-text model of transformers' own, with random weights."""

import json
import re
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tests.training.model.tiny_models import IMAGE_SIZE, build_model, build_tokenizer, text_config
from training.model.image_processor import AlignGPTImageProcessor
from training.model.processor import AlignGPTProcessor
from training.model.published.to_llava_hf import save_llava_hf


def write_tiny_itm(folder: Path, seed: int = 0) -> str:
    """Returns the folder, once a `LlavaForConditionalGeneration` with its processor lies there."""
    processor = AlignGPTProcessor(
        image_processor=AlignGPTImageProcessor(image_size=IMAGE_SIZE),
        tokenizer=build_tokenizer(adds_bos=False),
        num_image_tokens=16,
        has_align_token=False,
    )
    places = processor.placeholders
    with torch.random.fork_rng():
        model = build_model(
            "llama",
            text_config=text_config("llama", vocab_size=300, max_position_embeddings=512),
            image_token_id=places.image_token_id,
            align_token_id=places.align_token_id,
            leading_bos_token_id=places.bos_token_id,
            alignment_mode="none",
        )
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)  # far from even, so that answers differ
    save_llava_hf(model, processor, folder)
    return str(folder)


def write_tiny_writer(folder: Path, seed: int = 0) -> str:
    """Returns the folder of such a model that writes small letters and spaces, and ends."""
    write_tiny_itm(folder, seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.decode([token]) for token in range(300)]
    ends = [token for token, text in enumerate(texts) if text in tuple("jkqvxz")]
    shut = [token for token, text in enumerate(texts) if not re.fullmatch("[a-z ]", text)]
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    # As models of the field have it, a recipe for sampling beside what ends an answer.
    values |= {"eos_token_id": ends, "suppress_tokens": shut, "do_sample": True, "top_p": 0.7}
    path.write_text(json.dumps(values))
    return str(folder)
