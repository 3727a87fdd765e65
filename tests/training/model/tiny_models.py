"""Tiny random models of every kind that the tests put together."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig, TimmTowerConfig

VOCAB_SIZE = 96
IMAGE, ALIGN, BOS = VOCAB_SIZE, VOCAB_SIZE + 1, 1
IMAGE_SIZE = 16
PATCHES = 16


def vision_config(kind: str = "clip") -> Any:
    """Returns the config of a tower with 16 patches of a 16-pixel image."""
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 4,
    }
    if kind == "clip":
        return transformers.CLIPVisionConfig(**sizes)
    if kind == "siglip":
        return transformers.SiglipVisionConfig(**sizes)
    arguments = {
        "img_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2,
    }  # fmt: skip
    return TimmTowerConfig(
        architecture="vit_tiny_patch16_224",
        model_args=arguments,
        hidden_size=8,
        image_size=IMAGE_SIZE,
        num_patches=PATCHES,
        num_prefix_tokens=1,
    )


def text_config(kind: str = "llama", **settings: Any) -> Any:
    """Returns the config of a tiny language model."""
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": BOS,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "mistral": transformers.MistralConfig,
        "phi": transformers.PhiConfig,
        "gemma": transformers.GemmaConfig,
        "gemma2": transformers.Gemma2Config,
        "gpt2": transformers.GPT2Config,
    }
    if kind in ("mistral", "gemma2"):
        sizes["sliding_window"] = 24
    if kind == "gpt2":
        for name in ("intermediate_size", "num_key_value_heads"):
            del sizes[name]
    if kind in ("qwen2", "phi", "gpt2"):
        del sizes["head_dim"]
    return classes[kind](**{**sizes, **settings})


def model_config(text: str = "llama", vision: str = "clip", **settings: Any) -> AlignGPTConfig:
    """Returns the config of a tiny AlignGPT with four levels."""
    values: dict[str, Any] = {
        "vision_config": vision_config(vision),
        "text_config": text_config(text),
        "num_levels": 4,
        "gate_hidden_size": 12,
        "image_token_id": IMAGE,
        "align_token_id": ALIGN,
        "leading_bos_token_id": BOS,
    }
    return AlignGPTConfig(**{**values, **settings})


def build_model(
    text: str = "llama", vision: str = "clip", **settings: Any
) -> AlignGPTForConditionalGeneration:
    """Returns a tiny AlignGPT with random weights, large enough to tell inputs apart."""
    torch.manual_seed(0)
    model = AlignGPTForConditionalGeneration(model_config(text, vision, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.startswith("vision_tower"):
                parameter.mul_(4.0)
    return model


def load_with_report(folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Returns a saved model, and which of its weights were missing or not expected."""
    load: Any = AlignGPTForConditionalGeneration.from_pretrained
    return load(folder, output_loading_info=True, **settings)


def sample(seed: int, num_words: int, num_images: int = 1, num_targets: int = 3) -> dict[str, Any]:
    """Returns one laid out sample: BOS, align, images, words, of which the last are targets."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, VOCAB_SIZE, (num_words,), generator=generator).tolist()
    head = [BOS, ALIGN] if num_images else [BOS]
    ids = [*head, *[IMAGE] * PATCHES * num_images, *words]
    first = len(ids) - num_targets
    shape = (num_images, 3, IMAGE_SIZE, IMAGE_SIZE)
    return {
        "input_ids": ids,
        "labels": [-100] * first + ids[first:],
        "pixel_values": torch.randn(shape, generator=generator),
    }


def one_row(item: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the inputs of a sample alone in its batch."""
    inputs = {name: torch.tensor([item[name]]) for name in ("input_ids", "labels")}
    return {**inputs, "pixel_values": item["pixel_values"]}


def padded_rows(items: list[dict[str, Any]], side: str = "right") -> dict[str, Tensor]:
    """Returns the inputs of samples, one a row, padded."""
    length = max(len(item["input_ids"]) for item in items)

    def pad(values: list[int], filler: int) -> list[int]:
        padding = [filler] * (length - len(values))
        return values + padding if side == "right" else padding + values

    return {
        "input_ids": torch.tensor([pad(item["input_ids"], 0) for item in items]),
        "labels": torch.tensor([pad(item["labels"], -100) for item in items]),
        "attention_mask": torch.tensor([pad([1] * len(item["input_ids"]), 0) for item in items]),
        "pixel_values": torch.cat([item["pixel_values"] for item in items]),
    }


def packed_row(items: list[dict[str, Any]], padding: int = 5) -> dict[str, Tensor]:
    """Returns the inputs of samples packed into one row."""
    index = [i for i, item in enumerate(items) for _ in item["input_ids"]]
    positions = [p for item in items for p in range(len(item["input_ids"]))]
    return {
        "input_ids": torch.tensor([[t for i in items for t in i["input_ids"]] + [0] * padding]),
        "labels": torch.tensor([[t for i in items for t in i["labels"]] + [-100] * padding]),
        "sample_index": torch.tensor([index + [-1] * padding]),
        "position_ids": torch.tensor([positions + list(range(padding))]),
        "pixel_values": torch.cat([item["pixel_values"] for item in items]),
    }


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_STYLE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def build_tokenizer(adds_bos: bool) -> Any:
    """Returns a byte-level tokenizer: of Llama's manners, or of SmolLM2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = (
        ["<unk>", "<s>", "</s>"] if adds_bos else ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["what is this"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=names, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names[1],
        eos_token=names[2],
        pad_token=None if adds_bos else names[2],
        chat_template=LLAMA_STYLE if adds_bos else CHATML,
    )
