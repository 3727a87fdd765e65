"""The loss that is learnt, and what else one forward pass tells."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.collate import Batch
from training.model.inputs import IGNORE_INDEX

BINS = 10
"""Of the histogram of the gate's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoss:
    """The loss of a batch, and whose it is.

    Shapes: N alignment levels.
    """

    total: Tensor
    """Sum over the targets, a scalar with its gradient. Divided by the number of targets of the
    whole step it is the mean that is learnt, however the step is split."""
    level_sums: Tensor
    """(N + 1,) sums by the sample's level, those never levelled first."""
    gate_sums: Tensor
    """(N - 1,) weights of the local vectors, summed over the samples; zeros where none mixed."""
    gate_count: int
    """Samples whose vector was mixed by the gate."""
    gate_weights: Tensor | None
    """(A, N - 1) of each of them, in the order of the `<align>` tokens."""
    losses: Tensor
    """(B * K,) of each target, 0 where there is none."""
    image_features: Tensor | None
    """(I, R, D) of the pictures as the language model reads them."""
    hits: Tensor
    """(B * K,) bool, whether the target is what the model finds most likely."""
    gate_histogram: Tensor
    """(N - 1, BINS) how many samples gave each local vector a weight in each of BINS equal parts
    of 0 to 1."""


def batch_loss(engine: Any, batch: Batch, num_levels: int) -> BatchLoss:
    """Returns the loss of a batch: one forward pass on the engine's device.

    Logits are made only of the columns in which some row has a target to say next.
    """
    inputs = {
        name: value.to(engine.device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.inputs.items()
        if name != "labels"
    }
    outputs = engine(
        **inputs,
        logits_to_keep=batch.target_columns.to(engine.device, non_blocking=True),
        output_gate_weights=True,
    )
    logits = outputs.logits.float().flatten(0, 1)  # (B * K, V)
    targets = batch.targets.flatten().to(engine.device, non_blocking=True)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none")
    levels = batch.target_levels.flatten().to(engine.device, non_blocking=True)
    sums = torch.zeros(num_levels + 1, device=engine.device)
    gate_sums = torch.zeros(num_levels - 1, device=engine.device)
    histogram = torch.zeros(num_levels - 1, BINS, device=engine.device)
    weights = outputs.gate_weights
    if weights is not None:
        bins = (weights.detach().float() * BINS).long().clamp(0, BINS - 1)  # (A, N - 1)
        histogram = F.one_hot(bins, BINS).sum(dim=0).float()
        gate_sums = weights.detach().float().sum(dim=0)
    return BatchLoss(
        total=losses.sum(),
        level_sums=sums.index_add(0, levels, losses.detach()),
        gate_sums=gate_sums,
        gate_count=0 if weights is None else weights.shape[0],
        gate_weights=None if weights is None else weights.detach(),
        losses=losses.detach(),
        image_features=None if outputs.image_features is None else outputs.image_features.detach(),
        hits=logits.detach().argmax(dim=-1) == targets,
        gate_histogram=histogram,
    )
