"""A tiny image-text-to-text model of transformers' own, with random weights."""

from pathlib import Path

import torch

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
