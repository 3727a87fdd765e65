"""LoRA: the language model learns by small matrices beside its own, which stay as they are.

A linear layer W x becomes W x + (alpha / rank) · B A x with A (rank, in) and B (out, rank), B zero
at first, so that the model starts as it was. At the end the product is added to W: what is saved
is a plain model.

Source: arXiv:2106.09685, section 4.1.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from schemas.errors import ConfigError

ADAPTER = "default"
"""The name that peft gives an adapter in the names of weights."""

LORA_RULE = r"language_model\..*\.lora_[AB]\."
"""Matches the names of the adapters' weights."""


def add_lora(model: nn.Module, *, rank: int, alpha: float, dropout: float) -> None:
    """Puts adapters beside every linear layer of the language model but its head.

    GPT-2's `Conv1D` is a linear layer, too, whose matrix is transposed.

    Args:
        model: an AlignGPT model, not yet taken by DeepSpeed.
        rank: width of the adapters.
        alpha: their product is scaled by `alpha / rank`.
        dropout: share of an adapter's inputs that is dropped in training.

    Raises:
        ConfigError: if peft is not installed, or the model has no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "lora.rank needs the package peft: pip install aligngpt[train]"
        ) from error
    language_model: Any = model.language_model
    head = language_model.get_output_embeddings()
    targets = [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if not targets:
        raise ConfigError(
            f"lora.rank needs linear layers, but {type(language_model).__name__} has none: set "
            "lora.rank 0"
        )
    scale: Any = alpha  # peft takes fractions, but does not say so
    settings = LoraConfig(
        r=rank,
        lora_alpha=scale,
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in language_model.modules()),
    )
    inject_adapter_in_model(settings, language_model)


def has_lora(model: nn.Module) -> bool:
    """Returns whether the model has adapters."""
    return any(f".lora_A.{ADAPTER}." in name for name, _ in model.named_parameters())


def merge_lora(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of the plain model: each adapter added to the matrix beside it.

    The sum is made in fp32 and rounded once.

    Args:
        model: tells how each adapter is scaled; its own weights may be split over processes.
        weights: all of the model's weights, whole, under its own names.
    """
    merged = {
        name.replace(".base_layer.", "."): weight
        for name, weight in weights.items()
        if ".lora_A." not in name and ".lora_B." not in name
    }
    for name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        if not hasattr(module, "lora_A") or not isinstance(scaling, dict):
            continue
        a, b = (weights[f"{name}.lora_{part}.{ADAPTER}.weight"] for part in "AB")
        own = merged[f"{name}.weight"]
        with torch.no_grad():
            change = b.float() @ a.float() * scaling[ADAPTER]
            change = change.T if isinstance(module.base_layer, Conv1D) else change
            merged[f"{name}.weight"] = (own.float() + change).to(own.dtype)
    return merged
