"""What the alignment levels became in a model: its vectors, its gate, and what being told one does.

Three things are looked at. How far each level's vector went from where it started, and how alike
the vectors are. Which levels the gate asks for, by the kind of task. And the loss of the same
samples when the model is told each level in turn: if the levels matter, it trusts a picture less
that it is told is badly aligned.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from schemas.progress import shown
from training.config import SampleForm
from training.data.collate import Batch
from training.data.loader import PackedRows, Rows, load_batches
from training.evaluation.control import SampleResult, batch_results, compared
from training.loss import batch_loss
from training.model.inputs import IGNORE_INDEX

SHORT_ANSWER, SENTENCE = 8, 48
"""Most tokens of a short answer and of a sentence, with what ends them; above it is a description.
Source: ours: yes, no, a number or a name; what COCO's captions are at most; LLaVA's descriptions.
"""

UNTOLD = 0
"""In place of a level: what the model is told without us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The loss of some samples told one level, beside the same told the best."""

    loss: float
    """Nats per target token."""
    difference: float
    """By how much it is more than told the best."""
    low: float
    high: float
    """Bounds of the difference's 95 % interval, of a bootstrap over the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateWeights:
    """What the gate gives the local vectors in tasks of one kind.

    Shapes: N levels.
    """

    samples: int
    mean: list[float]
    """(N - 1,)."""
    spread: list[float]
    """(N - 1,) standard deviation over the samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """The level vectors.

    Shapes: N levels.
    """

    lengths: list[float]
    """(N,)."""
    start_lengths: list[float] | None
    """(N,) where training started; None where that is not known."""
    moved: list[float] | None
    """(N,) length of the way from there."""
    cosines: list[list[float]]
    """(N, N)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelsFound:
    """What was found of a model's levels."""

    num_levels: int
    vectors: Vectors
    samples: int
    """Held-out samples with pictures that were looked at."""
    untold: float | None
    """Loss as the stage has it: of the sample's own level, or mixed by the gate."""
    told: dict[int, Told]
    """By level; empty where there were no samples."""
    gate: dict[str, GateWeights]
    """By kind of task; empty where the gate mixed nothing."""

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON takes it."""
        return asdict(self)


def vectors_of(weight: Tensor, start: Tensor | None = None) -> Vectors:
    """Returns what is to be said of level vectors, (N, D).

    Args:
        start: (N, D), the same before training.
    """
    now = weight.detach().double().cpu()
    before = None if start is None else start.detach().double().cpu()
    unit = F.normalize(now, dim=1)
    return Vectors(
        lengths=now.norm(dim=1).tolist(),
        start_lengths=None if before is None else before.norm(dim=1).tolist(),
        moved=None if before is None else (now - before).norm(dim=1).tolist(),
        cosines=(unit @ unit.T).tolist(),
    )


def found_levels(
    engine: Any,
    rows: PackedRows,
    order: Sequence[Rows],
    vectors: Vectors,
    *,
    align_token_id: int,
    form: SampleForm,
    levels: Sequence[int] = (),
) -> LevelsFound:
    """Returns what a model makes of the same samples, told each level; all processes call it.

    Args:
        engine: DeepSpeed's, or the model itself with a `device`.
        order: this process's share of samples with pictures, from `validation_order`.
        levels: those that it is told beside the best; by default all.
    """
    count = len(vectors.lengths)
    asked = sorted({*(levels or range(1, count + 1)), count})
    seen = _Seen()
    was_training = engine.training if hasattr(engine, "training") else True
    engine.eval()
    with torch.no_grad():
        batches = load_batches(rows, order, workers=0, pin_memory=False)
        for batch in shown("telling each level", batches, len(order), unit="batch"):
            loss = batch_loss(engine, batch, count)
            seen.results[UNTOLD] |= batch_results(batch, loss)
            seen.add_gate(batch, loss.gate_weights, align_token_id, form)
            for level in asked:
                other = told(batch, level, align_token_id)
                seen.results[level] |= batch_results(other, batch_loss(engine, other, count))
    engine.train(was_training)
    seen = _of_all_processes(seen)
    best = seen.results[count]
    differences = {level: compared(best, seen.results[level]) for level in asked} if best else {}
    untold = compared(best, seen.results[UNTOLD]).exchanged if best else None
    return LevelsFound(
        num_levels=count,
        vectors=vectors,
        samples=len(best),
        untold=untold,
        told={
            level: Told(loss=d.exchanged, difference=d.difference, low=d.low, high=d.high)
            for level, d in differences.items()
        },
        gate={kind: _weights(gathered) for kind, gathered in sorted(seen.gate.items())},
    )


def told(batch: Batch, level: int, align_token_id: int) -> Batch:
    """Returns the batch with every sample that has a picture told this level."""
    ids = batch.inputs["input_ids"]
    count = int((ids == align_token_id).sum())
    levels = torch.full((count,), level, dtype=torch.int64)
    return replace(batch, inputs={**batch.inputs, "alignment_level": levels})


class _Seen:
    """What is gathered on the way."""

    def __init__(self) -> None:
        self.results: dict[int, dict[str, SampleResult]] = defaultdict(dict)
        """By level that was told, then by key."""
        self.gate: dict[str, dict[str, list[float]]] = defaultdict(dict)
        """By kind of task, then by key: the weights."""

    def add_gate(
        self, batch: Batch, weights: Tensor | None, align_token_id: int, form: SampleForm
    ) -> None:
        """Takes the gate's weights for a batch, (A, N - 1)."""
        if weights is None:
            return
        kinds = task_kinds(batch, form)
        owners = sample_numbers(batch)[batch.inputs["input_ids"] == align_token_id]
        for number, found in zip(owners.tolist(), weights.float().tolist(), strict=True):
            self.gate[kinds[number]][batch.keys[number]] = found


def sample_numbers(batch: Batch) -> Tensor:
    """Returns which of the batch's samples each token belongs to, (B, T); padding is below 0."""
    index = batch.inputs["sample_index"]
    assert index is not None
    counts = index.amax(dim=1) + 1  # (B,) samples of each row
    first = counts.cumsum(0) - counts
    return torch.where(index >= 0, index + first[:, None], -1)


def task_kinds(batch: Batch, form: SampleForm) -> list[str]:
    """Returns of what kind each sample of a batch is, by how long its answers are on average."""
    if form == "caption":
        return ["captions"] * len(batch.keys)
    labels = batch.inputs["labels"]
    assert labels is not None
    learnt = labels != IGNORE_INDEX
    numbers = sample_numbers(batch)
    is_first = learnt.clone()
    is_first[:, 1:] &= ~learnt[:, :-1] | (numbers[:, 1:] != numbers[:, :-1])
    size = len(batch.keys)
    tokens = torch.bincount(numbers[learnt], minlength=size)
    answers = torch.bincount(numbers[is_first], minlength=size).clamp(min=1)
    return [_kind(mean) for mean in (tokens / answers).tolist()]


def _kind(tokens: float) -> str:
    if tokens <= SHORT_ANSWER:
        return "short answers"
    return "sentences" if tokens <= SENTENCE else "descriptions"


def _of_all_processes(seen: _Seen) -> _Seen:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (dict(seen.results), dict(seen.gate)))
    together = _Seen()
    for results, gate in everyone:
        for level, found in results.items():
            together.results[level] |= found
        for kind, weights in gate.items():
            together.gate[kind] |= weights
    return together


def _weights(found: dict[str, list[float]]) -> GateWeights:
    values = torch.tensor([found[key] for key in sorted(found)], dtype=torch.float64)
    return GateWeights(
        samples=len(found),
        mean=values.mean(dim=0).tolist(),
        spread=values.std(dim=0, correction=0).tolist(),
    )
