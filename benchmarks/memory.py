"""Computes what memory a training recipe takes on each GPU, from its configuration alone.

    python benchmarks/memory.py            # prints the tables
    python benchmarks/memory.py --write    # and puts them into docs/memory.md

Weights are counted on the model's own classes, made without memory (torch's meta device) from the
published sizes of their parts; which of them learn, ZeRO's stage, the type of the gradients and
the sizes of DeepSpeed's buffers are those that the trainer sets. Nothing is measured on a GPU.
`docs/memory.md` says where each formula comes from.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.train.models import SHAPES, TOWERS
from schemas.errors import ConfigError
from training.config import LoraConfig, ModelConfig, Offload, TrainConfig
from training.engine.deepspeed import deepspeed_config, name_accelerator
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.model.config import AlignGPTConfig, TimmTowerConfig
from training.model.trainable import trainable_table
from training.parts import choose_trained
from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES

PAGE = Path(__file__).parent.parent / "docs" / "memory.md"
BEGIN, END = "<!-- written by benchmarks/memory.py -->", "<!-- end -->"

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": SHAPES["7b"],
    "lmsys/vicuna-13b-v1.5": {
        **SHAPES["7b"],
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "models/smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""Source: config.json of Vicuna v1.5 and of SmolLM2-135M."""

CAPTION_TOKENS = 17
"""Of a caption, as `pretrain_7b` reckons."""
GPUS = (1, 2, 4, 8)
CARDS = (24, 40, 80)
USED_RATIO = 0.9
"""Of a card's memory may be in these columns; what is left is for CUDA itself, what kernels borrow,
and gaps between tensors. A guess: nothing here has run on a GPU."""
GB = 1e9
WIDTH = 2
"""Bytes of a number in bf16."""
WAITS: dict[Offload, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("optimizer", "gradients"),
    "all": ("optimizer", "gradients", "weights"),
}
"""What each kind of offload keeps in main memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on each GPU, by what they hold."""

    weights: float
    gradients: float
    """Summed over the forward passes of a step."""
    optimizer: float
    """AdamW's two moments and the fp32 copy of the weights that learn."""
    buffers: float
    """DeepSpeed's buckets of gradients, and with ZeRO-3 the weights gathered at a time."""
    activations: float
    """As the recipe has it: with checkpointing, the blocks' inputs and one block in full."""
    logits: float
    all_kept: float
    """The activations without checkpointing."""

    @property
    def total(self) -> float:
        """All that is on the GPU."""
        held = (self.weights, self.gradients, self.optimizer, self.buffers)
        return sum(held) + self.activations + self.logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A recipe's model without memory, its weights counted."""

    model: AlignGPTForConditionalGeneration
    weights: int
    """All of them."""
    trained: int
    """Those that learn."""


def sized_model(config: TrainConfig) -> Sized:
    """Returns the recipe's model on the meta device, only what is to learn not frozen."""
    return _sized(config.model, config.lora, config.train_parts)


@cache
def _sized(parts: ModelConfig, lora: LoraConfig, train_parts: tuple[str, ...]) -> Sized:
    with torch.device("meta"):
        model = AlignGPTForConditionalGeneration(
            AlignGPTConfig(
                vision_config=_tower(parts.vision_tower),
                text_config=LlamaConfig(**LANGUAGE_MODELS[parts.language_model]),
                projector_type=parts.connector,
                standardizes_features=parts.projector_start != "paper",
                alignment_mode=parts.alignment_mode,
                num_levels=parts.num_levels,
            )
        )
        choose_trained(model, TrainConfig(model=parts, lora=lora, train_parts=train_parts))
    table = trainable_table(model)
    return Sized(
        model=model,
        weights=sum(part.num_weights for part in table),
        trained=sum(part.num_trainable for part in table),
    )


def recipe_memory(sized: Sized, config: TrainConfig, gpus: int) -> Memory:
    """Returns what a recipe takes on each of `gpus` GPUs, in bf16, which `auto` takes there.

    Raises:
        ConfigError: if the sequences of a step cannot be dealt out to so many.
    """
    parallel = replace(config.parallel, precision="bf16")
    settings = deepspeed_config(replace(config, parallel=parallel), gpus, has_gpu=True)
    states = state_bytes(sized.weights, sized.trained, settings, gpus)
    all_kept, checkpointed = activation_bytes(sized.model, config, WIDTH)
    for name in WAITS[parallel.offload]:
        states[name] = 0.0
    return Memory(
        **states,
        activations=checkpointed if parallel.activation_checkpointing else all_kept,
        logits=logit_bytes(sized.model, config, WIDTH),
        all_kept=all_kept,
    )


def _tower(name: str) -> Any:
    if name == "openai/clip-vit-large-patch14-336":
        return CLIPVisionConfig(**TOWERS["7b"])
    return TimmTowerConfig(  # the demo's, whose folder `examples/assemble_models.py` writes
        architecture="tf_efficientnet_lite0", hidden_size=1280, image_size=224, num_patches=49
    )


def state_bytes(
    weights: int, trained: int, settings: dict[str, Any], gpus: int
) -> dict[str, float]:
    """Returns the bytes of weights, gradients, optimizer and buffers on each GPU.

    Args:
        weights: all of the model's.
        trained: those that learn.
        settings: DeepSpeed's, as the trainer fills them in.

    Source: arXiv:1910.02054, section 5, with the type in which DeepSpeed accumulates.
    """
    name_accelerator()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    stage = int(zero.stage)
    width = 2 if settings["bf16"]["enabled"] else 4
    sums_in_fp32 = settings["data_types"]["grad_accum_dtype"] == "fp32"
    buckets = (2 if zero.overlap_comm and stage < 3 else 1) * zero.reduce_bucket_size * width
    waits = zero.offload_param is not None
    gathered = min(zero.max_live_parameters, weights) if stage == 3 and (gpus > 1 or waits) else 0
    return {
        "weights": width * weights / (gpus if stage == 3 else 1),
        "gradients": (4 if sums_in_fp32 else width) * trained / (gpus if stage >= 2 else 1),
        "optimizer": 12 * trained / (gpus if stage >= 1 else 1),
        "buffers": buckets + width * gathered,
    }


def activation_bytes(model: Any, config: TrainConfig, width: int) -> tuple[float, float]:
    """Returns the bytes kept for the backward pass: without checkpointing, and the most with it."""
    text = model.config.text_config
    tokens = config.data.tokens_per_sequence * config.data.sequences_per_device
    layers = text.num_hidden_layers
    block = tokens * block_bytes(model.language_model.model.layers[0], text, width)
    outside = tokens * norm_bytes(model.language_model.model.norm, text.hidden_size, width)
    outside += projector_bytes(model, pictures(model, config), width)
    inputs = tokens * layers * width * text.hidden_size
    return layers * block + outside, inputs + block + outside


def block_bytes(block: nn.Module, text: Any, width: int) -> float:
    """Returns the bytes that a block of Llama keeps of each token for its backward pass.

    Each operation keeps what its derivative needs: a linear layer its input if its matrix learns,
    attention q, k, v, its output and a number for each head, SiLU and the product their factors.
    Source: arXiv:2205.05198, section 4.1, counted anew for Llama's operations.

    Args:
        block: a decoder layer; which of its weights learn decides what is kept.
        width: bytes of a number.
    """
    hidden, inner = text.hidden_size, text.intermediate_size
    queries = text.num_attention_heads * text.head_dim
    keys = text.num_key_value_heads * text.head_dim
    learns = {
        name.split(".")[1]
        for name, weight in block.named_parameters()
        if weight.requires_grad and "." in name and "norm" not in name
    }
    ranks = sum(weight.shape[0] for name, weight in block.named_parameters() if ".lora_A." in name)
    kept = width * (2 * queries + 2 * keys) + 4 * text.num_attention_heads
    kept += width * 3 * inner  # gate, its SiLU, up
    kept += width * ranks
    kept += width * hidden * bool(learns & {"q_proj", "k_proj", "v_proj"})
    kept += width * hidden * bool(learns & {"gate_proj", "up_proj"})
    kept += width * inner * ("down_proj" in learns)
    norms = (module for name, module in block.named_children() if name.endswith("layernorm"))
    return kept + sum(norm_bytes(norm, hidden, width) for norm in norms)


def norm_bytes(norm: nn.Module, hidden: int, width: int) -> float:
    """Returns the bytes that an RMSNorm keeps of each token: its input in fp32, and its scale.

    Where its weights learn, what they are multiplied by is kept, too.
    """
    learns = any(weight.requires_grad for weight in norm.parameters())
    return 4 * hidden + 4 + width * hidden * learns


def projector_bytes(model: Any, num_pictures: int, width: int) -> float:
    """Returns the bytes that the projector keeps: each layer's input, and what GELU reads."""
    linear = [module for module in model.projector.modules() if isinstance(module, nn.Linear)]
    inputs = sum(layer.in_features for layer in linear)
    before_gelu = sum(layer.out_features for layer in linear[:-1])
    vectors = num_pictures * model.config.num_image_tokens
    return float(width * vectors * (inputs + before_gelu))


def pictures(model: Any, config: TrainConfig) -> int:
    """Returns how many captioned pictures fill a sequence; of conversations, as many at most."""
    sample = model.config.num_image_tokens + 2 + CAPTION_TOKENS  # and BOS and <align>
    return config.data.tokens_per_sequence // sample * config.data.sequences_per_device


def logit_bytes(model: Any, config: TrainConfig, width: int) -> float:
    """Returns the bytes of logits and loss: logits, in fp32, their log-softmax (or its gradient).

    There are logits only where a target follows: in a sequence full of captions, not at its
    pictures; of a conversation all tokens are counted, which is the most there can be.
    """
    tokens = config.data.tokens_per_sequence * config.data.sequences_per_device
    if config.data.form == "caption":
        tokens -= pictures(model, config) * model.config.num_image_tokens
    return float(tokens * model.config.text_config.vocab_size * (width + 4 + 4))


HEADS = (
    *("recipe", "GPUs", "weights", "gradients", "optimizer", "buffers", "activations", "logits"),
    *("sum", "fits on", "activations, all kept"),
)


def memory_table(named: dict[str, TrainConfig], numbers: tuple[int, ...] = GPUS) -> str:
    """Returns the recipes' memory as a Markdown table in GB, a line for each number of GPUs."""
    lines = [f"| {' | '.join(HEADS)} |", "|---" + "|--:" * (len(HEADS) - 1) + "|"]
    for name, config in named.items():
        lines += [f"| {name} | {' | '.join(row)} |" for row in rows(config, numbers)]
    return "\n".join(lines)


def rows(config: TrainConfig, numbers: tuple[int, ...]) -> Iterator[list[str]]:
    """Yields the cells of each number of GPUs to which the recipe's sequences can be dealt out."""
    sized = sized_model(config)
    for gpus in numbers:
        try:
            memory = recipe_memory(sized, config, gpus)
        except ConfigError:
            continue
        held = (memory.weights, memory.gradients, memory.optimizer, memory.buffers)
        columns = (*held, memory.activations, memory.logits, memory.total)
        card = next(
            (f"{card} GB" for card in CARDS if memory.total <= USED_RATIO * card * GB), "none"
        )
        kept = f"{memory.all_kept / GB:.2f}"
        yield [str(gpus), *(f"{number / GB:.2f}" for number in columns), card, kept]


def base_recipes() -> dict[str, TrainConfig]:
    """Returns the recipes but the ablations' rows, which differ in level vectors and gate alone."""
    every = {**PRETRAIN_RECIPES, **FINETUNE_RECIPES}
    named = {name: make() for name, make in every.items()}
    return {
        name: config
        for name, config in named.items()
        if not any(name.startswith(f"{other}_") and config.lora.rank == 0 for other in named)
    }


def offloaded() -> dict[str, TrainConfig]:
    """Returns stage 2 with states in main memory."""
    found = {}
    for name in ("finetune_7b", "finetune_13b"):
        config = FINETUNE_RECIPES[name]()
        for offload in (kind for kind in WAITS if kind != "none"):
            parallel = replace(config.parallel, offload=offload)
            found[f"{name}, offload {offload}"] = replace(config, parallel=parallel)
    return found


def parts_table() -> str:
    """Returns the weights of each part in stage 2, in millions, and those that learn."""
    lines = ["| recipe | part | weights, millions | learn, millions |", "|---|---|--:|--:|"]
    for name, config in base_recipes().items():
        if name not in FINETUNE_RECIPES:
            continue
        for part in trainable_table(sized_model(config).model):
            counts = (f"{count / 1e6:,.3f}" for count in (part.num_weights, part.num_trainable))
            lines.append(f"| {name} | {part.name} | {' | '.join(counts)} |")
    return "\n".join(lines)


def written() -> str:
    """Returns the tables as the page has them."""
    return "\n\n".join(
        [
            memory_table(base_recipes()),
            "With states in main memory (`--parallel.offload`), on the GPU:",
            memory_table(offloaded(), (1, 2)),
            "The weights counted, and what learns in stage 2:",
            parts_table(),
        ]
    )


def with_tables(page: str, tables: str) -> str:
    """Returns the page with these tables between its two marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Prints the tables, and writes them if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/memory.md")
    options = parser.parse_args()
    tables = written()
    print(tables)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_tables(page, tables), encoding="utf-8")


if __name__ == "__main__":
    main()
