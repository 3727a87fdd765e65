"""Whether flex_attention gives on this machine what sdpa gives, checked before a run relies on it.

flex_attention skips the blocks that packed samples do not see of each other, and never makes the
(tokens x tokens) mask. It is compiled for the machine, the head size and the precision at hand, and
not every combination works: then `auto` trains with sdpa, which is right everywhere, and says why.
"""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

FAULTS = (RuntimeError, ImportError, ValueError, TypeError, AttributeError, AssertionError, OSError)
"""What a missing compiler, an unknown head size or a model without flex_attention raises."""
TOLERANCES = {torch.bfloat16: 3e-2, torch.float32: 1e-3}
"""Largest difference, as a share of the largest value: a few roundings (2^-8 in bf16)."""
SAMPLES = (5, 2, 3)
"""Lengths of the samples packed in a row of the check, in tenths of it."""


def flex_attention_fault(
    config: Any, *, dtype: torch.dtype, device: torch.device, rows: int, width: int
) -> str | None:
    """Returns why flex_attention cannot be used; None where one layer gives what sdpa gives.

    On a GPU the gradients are compared, too; on a CPU flex_attention has none.

    Args:
        config: the language model's.
        dtype: of weights and activations.
        device: of the training.
        rows: packed sequences of a forward pass.
        width: tokens of one; with both as in training, what is compiled here is used there.
    """
    try:
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.device(device):
            torch.manual_seed(0)
            layer = AutoModelForCausalLM.from_config(
                _one_layer(config), dtype=dtype, attn_implementation="sdpa"
            ).train()
            embeddings = torch.randn(rows, width, config.hidden_size, dtype=dtype)
            expected = _outcome(layer, embeddings)
            layer.set_attn_implementation("flex_attention")
            found = _outcome(layer, embeddings)
    except FAULTS as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    for ours, theirs in zip(found, expected, strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= TOLERANCES.get(dtype, 3e-2):
            return f"its results differ from those of sdpa by {difference:.1%}"
    return None


def _one_layer(config: Any) -> Any:
    """Returns the config of the same model with one layer and few words."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size, small.pad_token_id = 1, 64, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    return small


def _outcome(layer: Any, embeddings: Tensor) -> list[Tensor]:
    """Returns the logits of packed rows and, on a GPU, the gradient of their squares, in fp32."""
    has_gradient = embeddings.device.type != "cpu"
    inputs = embeddings.clone().requires_grad_(has_gradient)
    with torch.set_grad_enabled(has_gradient):
        logits = layer(
            inputs_embeds=inputs, position_ids=_positions(embeddings), use_cache=False
        ).logits.float()
        if not has_gradient:
            return [logits]
        (gradient,) = torch.autograd.grad(logits.square().sum(), inputs)
    return [logits.detach(), gradient.float()]


def _positions(embeddings: Tensor) -> Tensor:
    """Returns the positions of samples packed into rows, (B, T), other ones in every row."""
    rows, width = embeddings.shape[:2]
    positions = []
    for row in range(rows):
        turned = SAMPLES[row % len(SAMPLES) :] + SAMPLES[: row % len(SAMPLES)]
        sizes = [width * tenths // sum(SAMPLES) for tenths in turned]
        sizes[-1] += width - sum(sizes)
        positions.append(torch.cat([torch.arange(size) for size in sizes]))
    return torch.stack(positions).to(embeddings.device)
