"""Attention that skips what packed samples do not see of each other, checked before it is used.

sdpa computes all pairs of tokens of a packed row and masks most of them. flex_attention leaves out
the blocks between samples and never makes the (tokens x tokens) mask; it is compiled for the
machine, the head size and the precision at hand, and not every combination works. `BY_SAMPLE`,
registered here with transformers, calls sdpa once for each sample: no compiler, any device. Before
a run relies on one of them, one layer of its language model must give what sdpa gives.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from schemas.arithmetic import keep_kernels_apart
from schemas.errors import ConfigError
from training.model.packing.check import make_audible, one_of_each_kind
from training.model.packing.segments import (
    packed_lengths,
    positions,
    restart_positions,
    sample_bounds,
)

BY_SAMPLE = "sdpa_by_sample"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

FAULTS = (RuntimeError, ImportError, ValueError, TypeError, AttributeError, AssertionError, OSError)
"""What a missing compiler, an unknown head size or a model without such an attention raises."""
TOLERANCES = {torch.bfloat16: 3e-2, torch.float32: 1e-3}
"""Largest difference, as a share of the largest value: a few roundings (2^-8 in bf16)."""
MOST_PADDED = 1.5
"""Up to this multiple of a row's tokens its samples are padded to the longest and taken at once."""
SAMPLES = ((5, 2, 3), (8, 1, 1), (10,))
"""Lengths of the samples in the rows of the checks, in tenths of them: even, uneven, one alone."""


def attention_by_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    bounds_of_samples: list[list[int]] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Returns causal attention within each sample of packed rows, (B, T, H, D).

    Args:
        module: the attention's layer.
        query: (B, H, T, D).
        key: (B, K, T, D), K heads; so is `value`.
        value: as `key`.
        attention_mask: sdpa's; used where a batch is not packed.
        bounds_of_samples: of each row, where its samples begin, and T; None if none are packed.
        sliding_window: how far a token looks back; a longer sample takes the mask.
    """
    rows = bounds_of_samples or []
    longest = max((stop - start for row in rows for start, stop in pairwise(row)), default=0)
    if not rows or (sliding_window is not None and longest > sliding_window):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
        return attended

    found = []
    for number, row in enumerate(rows):
        lengths = [stop - start for start, stop in pairwise(row)]
        is_even = len(lengths) * longest <= MOST_PADDED * row[-1]
        compute = _side_by_side if is_even else _one_by_one
        packed = [tensor[number] for tensor in (query, key, value)]
        found.append(compute(attend, packed, lengths))
    return torch.stack(found), None


def _side_by_side(attend: Attend, packed: list[Tensor], lengths: list[int]) -> Tensor:
    """Returns the attention within each sample of a row, (T, H, D), by one call of sdpa.

    The samples are padded at their ends to the longest, which causal attention does not look at.

    Args:
        attend: causal attention, (S, T, H, D), of query, key and value, each (S, heads, T, D).
        packed: query, key and value of a row, each (heads, T, D).
        lengths: of the samples.
    """
    device, longest = packed[0].device, max(lengths)
    sizes = torch.tensor(lengths, device=device)[:, None]
    places = torch.arange(longest, device=device)
    columns = (sizes.cumsum(0) - sizes + places).clamp(max=sum(lengths) - 1).flatten()
    query, key, value = (
        tensor.index_select(1, columns).unflatten(1, (len(lengths), longest)).transpose(0, 1)
        for tensor in packed
    )
    attended = attend(query, key, value)
    kept = (places < sizes).flatten().nonzero().squeeze(1)
    return attended.flatten(0, 1).index_select(0, kept)


def _one_by_one(attend: Attend, packed: list[Tensor], lengths: list[int]) -> Tensor:
    """Returns the same by a call for each sample; split, since each slice's gradient is a row."""
    parts = []
    for sample in zip(*(tensor.split(lengths, dim=1) for tensor in packed), strict=True):
        query, key, value = (part[None] for part in sample)
        parts.append(attend(query, key, value)[0])
    return torch.cat(parts)


AttentionInterface.register(BY_SAMPLE, attention_by_sample)
AttentionMaskInterface.register(BY_SAMPLE, sdpa_mask)


def settings_of_samples(attention: str, position_ids: Tensor) -> dict[str, Any]:
    """Returns what an attention needs to know beside the positions of packed rows, (B, T)."""
    if "flash" in attention:
        return packed_lengths(position_ids)
    return {"bounds_of_samples": sample_bounds(position_ids)} if attention == BY_SAMPLE else {}


def settings_of_rows(
    attention: str,
    *,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    sample_index: Tensor | None,
    use_cache: bool | None,
    num_tokens: int,
) -> dict[str, Any]:
    """Returns what tells a language model where each token stands, and in which sample.

    Args:
        attention: the language model's.
        attention_mask: as `training.model.inputs` has it, as are the next two.
        position_ids: given ones stay as they are.
        sample_index: of packed rows.
        use_cache: as asked; packed rows have no cache.
        num_tokens: of a row, without those in the cache.

    Raises:
        ConfigError: if packed rows come with an attention mask.
    """
    if sample_index is None:
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions(attention_mask)[:, -num_tokens:]
        return {"position_ids": position_ids, "use_cache": use_cache}
    if attention_mask is not None:
        raise ConfigError("packed rows (sample_index) take no attention_mask")
    if position_ids is None:
        position_ids = restart_positions(sample_index)
    # with a cache, transformers does not look for packed samples
    settings = settings_of_samples(attention, position_ids)
    return {"position_ids": position_ids, "use_cache": False, **settings}


def attention_fault(
    attention: str,
    config: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rows: int,
    width: int,
) -> str | None:
    """Returns why an attention cannot be used; None where one layer gives what sdpa gives.

    The gradients are compared, too, but for flex_attention's on a CPU, where it has none.

    Args:
        attention: flex_attention or `BY_SAMPLE`.
        config: the language model's.
        dtype: of weights and activations.
        device: of the training.
        rows: packed sequences of a forward pass.
        width: tokens of one; with both as in training, what is compiled here is used there.
    """
    if attention != BY_SAMPLE:
        keep_kernels_apart()
    try:
        devices = [device] if device.type == "cuda" else []
        has_gradient = attention == BY_SAMPLE or device.type != "cpu"
        with torch.random.fork_rng(devices=devices), torch.device(device):
            torch.manual_seed(0)
            layer = AutoModelForCausalLM.from_config(
                one_of_each_kind(config), dtype=dtype, attn_implementation="sdpa"
            ).train(attention != BY_SAMPLE)  # dropout would make any two runs differ
            if attention == BY_SAMPLE:
                make_audible(layer)
            embeddings = torch.randn(rows, width, config.hidden_size, dtype=dtype)
            expected = _outcomes(layer, embeddings, has_gradient)
            layer.set_attn_implementation(attention)
            found = _outcomes(layer, embeddings, has_gradient)
    except FAULTS as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    for ours, theirs in zip(found, expected, strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= TOLERANCES.get(dtype, 3e-2):
            return f"its results differ from those of sdpa by {difference:.1%}"
    return None


def _outcomes(layer: Any, embeddings: Tensor, has_gradient: bool) -> list[Tensor]:
    """Returns what `_outcome` does, of packed rows and of rows that one sample fills."""
    return [
        tensor
        for samples in SAMPLES
        for tensor in _outcome(layer, embeddings, _positions(embeddings, samples), has_gradient)
    ]


def _outcome(layer: Any, embeddings: Tensor, positions: Tensor, has_gradient: bool) -> list[Tensor]:
    """Returns the logits and perhaps the gradient of their squares, in fp32."""
    inputs = embeddings.clone().requires_grad_(has_gradient)
    more = settings_of_samples(layer.config._attn_implementation, positions)
    with torch.set_grad_enabled(has_gradient):
        logits = layer(
            inputs_embeds=inputs, position_ids=positions, use_cache=False, **more
        ).logits.float()
        if not has_gradient:
            return [logits]
        (gradient,) = torch.autograd.grad(logits.square().sum(), inputs)
    return [logits.detach(), gradient.float()]


def _positions(embeddings: Tensor, samples: tuple[int, ...]) -> Tensor:
    """Returns the positions of samples packed into rows, (B, T), other ones in every row.

    Args:
        embeddings: (B, T, hidden size).
        samples: lengths of a row's samples, in tenths of it.
    """
    rows, width = embeddings.shape[:2]
    positions = []
    for row in range(rows):
        turned = samples[row % len(samples) :] + samples[: row % len(samples)]
        sizes = [width * tenths // sum(samples) for tenths in turned]
        sizes[-1] += width - sum(sizes)
        positions.append(torch.cat([torch.arange(size) for size in sizes]))
    return torch.stack(positions).to(embeddings.device)
