"""The loss on samples that a model was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from schemas.progress import shown
from training.data.lengths import SampleLengths
from training.data.loader import PackedRows, Rows, load_batches
from training.data.packing import pack
from training.loss import batch_loss
from training.metrics.totals import RunningTotals, Totals

VALIDATION_WINDOW = 64
"""Of `validation_order`, for a language model that keeps packed samples apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What a run is validated on: held-out samples, and those with pictures once more with others.

    The orders are this process's share, from `validation_order`.
    """

    rows: PackedRows
    order: Sequence[Rows]
    """Empty where nothing is held out."""
    control_rows: PackedRows
    """The same samples with exchanged pictures."""
    control_order: Sequence[Rows]
    told_order: Sequence[Rows]
    """The first of those with pictures, which are told each level at the end."""


def validation_loss(
    engine: Any, rows: PackedRows, order: Sequence[Rows], num_levels: int
) -> Totals:
    """Returns the sums over all held-out samples; all processes must call this together.

    Args:
        engine: DeepSpeed's, or the model itself with a `device`.
        order: this process's share, from `validation_order`.
    """
    totals = RunningTotals(num_levels, engine.device)
    was_training = engine.training if hasattr(engine, "training") else True
    engine.eval()
    with torch.no_grad():
        batches = load_batches(rows, order, workers=0, pin_memory=False)
        for batch in shown("validating", batches, len(order), unit="batch"):
            totals.add(batch, batch_loss(engine, batch, num_levels))
    engine.train(was_training)
    return totals.reduce(is_stopping=False)


def validation_order(
    samples: Sequence[int],
    lengths: SampleLengths,
    tokens_per_sequence: int,
    window: int = VALIDATION_WINDOW,
) -> list[Rows]:
    """Returns this process's share of the held-out samples, packed.

    Every process has as many rows as the others; some may be empty.

    Args:
        window: waiting samples among which the mates of a sequence are chosen; 1 packs none.
    """
    present = [sample for sample in samples if lengths.tokens[sample] > 0]
    packed = pack(present, lengths.tokens, tokens_per_sequence, window)
    processes, process = dist.get_world_size(), dist.get_rank()
    packed += [()] * (-len(packed) % processes)
    return [(row,) for row in packed[process::processes]]
