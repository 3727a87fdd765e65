"""The control: the same samples with other pictures, which tells whether a model looks.

A model that answers as well about another picture answers from the words alone. So every measure
can be taken twice, once with each sample's own picture and once with another sample's, and what
counts is the difference.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from schemas.progress import shown
from training.data.collate import Batch
from training.data.dataset import TrainDataset
from training.data.loader import PackedRows, Rows, load_batches
from training.loss import BatchLoss, batch_loss
from training.model.inputs import IGNORE_INDEX

RESAMPLES = 2_000
"""Of the bootstrap."""
CLEAR_SHARE = 0.1
"""Of a model's loss with exchanged pictures: what right ones must be worth to be called used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictured:
    """What the choice of another picture depends on."""

    key: str
    """Of the sample: any text that no other sample has."""
    hashes: tuple[str, ...]
    """Of its pictures, in their order; none for text alone."""
    caption: str
    """What is said about them; empty where nothing is known."""


def exchanged(samples: Sequence[Pictured]) -> list[int | None]:
    """Returns for each sample which sample's pictures it gets in their place.

    The other has as many pictures, none of the same hash, and another caption. The choice depends
    on the samples' keys alone, not on their order; pictures are given out about equally often.
    None stands for a sample without pictures, or for which there is no other.
    """
    by_count: dict[int, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_count[len(sample.hashes)].append(index)
    chosen: list[int | None] = [None] * len(samples)
    for count, members in by_count.items():
        if count:
            members.sort(key=lambda index: _order(samples[index].key))
            for place, index in enumerate(members):
                mine = samples[index]
                others = (members[(place + step) % len(members)] for step in range(1, len(members)))
                chosen[index] = next((o for o in others if _differ(mine, samples[o])), None)
    return chosen


def _order(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _differ(one: Pictured, other: Pictured) -> bool:
    is_same_said = one.caption.strip().lower() == other.caption.strip().lower() != ""
    return not is_same_said and not set(one.hashes) & set(other.hashes)


def exchanged_samples(dataset: TrainDataset, samples: Sequence[int]) -> dict[int, int]:
    """Returns for these samples of a dataset whose pictures each gets, where there are any."""
    described = []
    for index in samples:
        sample = dataset[index]
        described.append(
            Pictured(key=sample.key, hashes=sample.image_hashes, caption=sample.caption)
        )
    others = exchanged(described)
    return {
        index: samples[other]
        for index, other in zip(samples, others, strict=True)
        if other is not None
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A measure with the right pictures and with exchanged ones, over the same samples."""

    right: float
    exchanged: float
    difference: float
    """What the right pictures are worth: exchanged minus right of a loss, right minus exchanged of
    a score."""
    low: float
    high: float
    """Bounds of the difference's 95 % interval."""
    samples: int

    @property
    def is_seen(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0.0

    @property
    def is_clear(self) -> bool:
        """Whether, of a loss, the whole interval lies above CLEAR_SHARE of it."""
        return self.low > CLEAR_SHARE * self.exchanged


def loss_difference(
    right: NDArray[np.float64], other: NDArray[np.float64], targets: NDArray[np.float64]
) -> Difference:
    """Returns what the pictures are worth in nats per target token.

    The interval is of a bootstrap over the samples, which are drawn whole; always the same draws.

    Args:
        right: (S,) loss of each sample, summed over its targets.
        other: (S,) the same with exchanged pictures.
        targets: (S,) each sample's targets.
    """
    total = max(1.0, float(targets.sum()))
    gain = other - right
    low = high = float(gain.sum()) / total
    if len(gain) > 1:
        chance = np.random.default_rng(0)
        drawn = chance.integers(0, len(gain), size=(RESAMPLES, len(gain)))
        means = gain[drawn].sum(axis=1) / targets[drawn].sum(axis=1)
        low, high = (float(bound) for bound in np.quantile(means, (0.025, 0.975)))
    return Difference(
        right=float(right.sum()) / total,
        exchanged=float(other.sum()) / total,
        difference=float(gain.sum()) / total,
        low=low,
        high=high,
        samples=len(gain),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """What a model makes of one sample."""

    loss: float
    """Summed over its targets, in nats."""
    targets: int
    is_exact: bool
    """Whether each target is the likeliest after those before it: greedy decoding then says the
    answer word for word, and ends."""


def sample_results(
    engine: Any, rows: PackedRows, order: Sequence[Rows], num_levels: int
) -> dict[str, SampleResult]:
    """Returns what the model makes of each sample, by its key.

    All processes must call this together; each gets the samples of all.

    Args:
        engine: DeepSpeed's, or the model itself with a `device`.
        order: this process's share, from `validation_order`.
    """
    found: dict[str, SampleResult] = {}
    was_training = engine.training if hasattr(engine, "training") else True
    engine.eval()
    with torch.no_grad():
        batches = load_batches(rows, order, workers=0, pin_memory=False)
        for batch in shown("validating with pictures", batches, len(order), unit="batch"):
            found |= batch_results(batch, batch_loss(engine, batch, num_levels))
    engine.train(was_training)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return {key: value for part in everyone for key, value in part.items()}


def batch_results(batch: Batch, loss: BatchLoss) -> dict[str, SampleResult]:
    """Returns the results of a batch's samples; a target belongs to the sample it stands in."""
    index = batch.inputs["sample_index"]
    assert index is not None
    counts = index.amax(dim=1) + 1  # (B,) samples of each row
    first = counts.cumsum(0) - counts
    numbers = (index[:, batch.target_columns] + first[:, None]).flatten()
    learnt = (batch.targets != IGNORE_INDEX).flatten()
    size = len(batch.keys)
    sums = torch.zeros(size, dtype=torch.float64)
    sums.index_add_(0, numbers[learnt], loss.losses.cpu()[learnt].double())
    targets = torch.bincount(numbers[learnt], minlength=size)
    hits = torch.bincount(numbers[learnt][loss.hits.cpu()[learnt]], minlength=size)
    return {
        key: SampleResult(loss=total, targets=count, is_exact=hit == count)
        for key, total, count, hit in zip(
            batch.keys, sums.tolist(), targets.tolist(), hits.tolist(), strict=True
        )
    }


def compared(right: dict[str, SampleResult], other: dict[str, SampleResult]) -> Difference:
    """Returns the difference of the losses over the samples that have both."""
    keys = sorted(right.keys() & other.keys())
    return loss_difference(
        np.array([right[key].loss for key in keys]),
        np.array([other[key].loss for key in keys]),
        np.array([float(right[key].targets) for key in keys]),
    )


def score_difference(right: NDArray[np.float64], other: NDArray[np.float64]) -> Difference:
    """Returns by how much scores, more being better, are higher with the right pictures.

    The interval is of a bootstrap over the samples; always the same draws.

    Args:
        right: (S,) each sample's score, as 1 for a right answer and 0 for a wrong one.
        other: (S,) the same with exchanged pictures.
    """
    found = loss_difference(-right, -other, np.ones(len(right)))
    return replace(found, right=-found.right, exchanged=-found.exchanged)


def in_words(found: Difference) -> str:
    """Returns whether a model uses its pictures, as a plain sentence.

    That takes more than an interval above 0: at least CLEAR_SHARE of the loss with exchanged
    pictures, since a model that answers from the words may still be a little better with the right
    ones.
    """
    worth = (
        f"{found.difference:+.3f} nats a token ({found.low:+.3f} to {found.high:+.3f}), from "
        f"{found.right:.3f} to {found.exchanged:.3f}"
    )
    of = f"over {found.samples:,} held-out samples"
    if found.is_clear:
        return f"The model uses its pictures: exchanged ones cost it {worth}, {of}."
    if found.is_seen:
        share = found.difference / found.exchanged
        return (
            f"The model hardly uses its pictures: exchanged ones cost it {worth}, {of}. That is "
            f"{share:.0%} of its loss; most of what it says it says from the words."
        )
    return (
        f"The model does NOT use its pictures, as far as can be seen: with exchanged ones its loss "
        f"differs by {worth}, {of}. It answers from the words alone."
    )
