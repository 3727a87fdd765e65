"""The models of the benchmark that have new weights: speed does not depend on their values."""

import csv
from pathlib import Path
from typing import Any

import torch

from benchmarks.train.mixture import EXAMPLES

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
    "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 32_000
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 4_096,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": VOCABULARY,
    },
}
SHAPES["3.5b"] = {**SHAPES["7b"], "num_hidden_layers": 16}
"""Llama's settings; 7b are those of Vicuna 7B, 3.5b has half of its layers."""
LARGE = ("3.5b", "7b")
"""Shapes for a large GPU, in bf16."""
BYTES_OF_7B = 120e9
"""GPU memory below which 7b does not fit: stage 2 keeps 16 bytes for each of its 6.7 billion
weights (weight and gradient in bf16; weight and two moments in fp32), and activations."""


def fitting_shape(shape: str) -> str:
    """Returns the shape, or 3.5b where the GPU is too small for 7b."""
    if shape != "7b" or not torch.cuda.is_available():
        return shape
    return "7b" if torch.cuda.get_device_properties(0).total_memory >= BYTES_OF_7B else "3.5b"


TOWERS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 98,
        "patch_size": 14,
    },
    "7b": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
TOWERS["3.5b"] = TOWERS["7b"]
"""CLIP's settings; 7b are those of ViT-L/14 at 336 pixels, tiny has the demo's 49 patches."""


def write_parts(folder: Path, shape: str, device: str) -> None:
    """Writes `language_model` and `vision_tower`, random, below the folder."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    ids: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
    }
    dtype = torch.bfloat16 if shape in LARGE else torch.float32
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, **ids))
        tower = CLIPVisionModel(CLIPVisionConfig(**TOWERS[shape]))
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "language_model")
    tokenizer.save_pretrained(folder / "language_model")
    tower.save_pretrained(folder / "vision_tower")
    del model, tower
    if device == "cuda":
        torch.cuda.empty_cache()
    size = TOWERS[shape]["image_size"]
    images = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    images.save_pretrained(folder / "vision_tower")


def train_tokenizer() -> Any:
    """Returns a byte-level BPE tokenizer of the corpus's captions, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with (EXAMPLES / "corpus" / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file, delimiter="\t")]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
    )
