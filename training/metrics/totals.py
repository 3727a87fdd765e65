"""Sums over the batches of a step, and over the processes."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.collate import Batch
from training.loss import BINS, BatchLoss
from training.model.inputs import IGNORE_INDEX


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What all processes together did in a step, or in several."""

    loss_sum: float
    targets: float
    tokens: float
    """Without padding."""
    padded_tokens: float
    samples: float
    skipped: float
    """Samples whose picture could not be read."""
    key_sum: float
    """First 32 bits of the samples' keys, added up: tells whether two steps saw the same ones."""
    images: float
    squared_lengths: float
    """Sum over the samples of their length squared, for the cost of attention."""
    wait_seconds: float
    """Waiting for data, summed over the processes."""
    stop_votes: float
    """Processes that were asked to stop."""
    level_sums: tuple[float, ...]
    """Loss by alignment level, those never levelled first."""
    level_counts: tuple[float, ...]
    """Targets by alignment level."""
    gate_sums: tuple[float, ...]
    """Gate weights by local level, summed over the samples."""
    gate_count: float
    gate_histogram: tuple[tuple[float, ...], ...]
    """Of each local level, how many samples gave it a weight in each equal part of 0 to 1."""

    @property
    def loss(self) -> float:
        """Mean over the target tokens."""
        return self.loss_sum / max(1.0, self.targets)

    @property
    def level_losses(self) -> dict[int, float]:
        """Mean loss of each level that was seen."""
        pairs = zip(self.level_sums, self.level_counts, strict=True)
        return {level: s / n for level, (s, n) in enumerate(pairs) if level and n}

    @property
    def gate_means(self) -> dict[int, float]:
        """Mean weight of each local level, where the gate mixed."""
        if not self.gate_count:
            return {}
        return {level: s / self.gate_count for level, s in enumerate(self.gate_sums, start=1)}


SCALARS = 12


class RunningTotals:
    """Adds up batches on this process; `reduce` adds up the processes and starts anew."""

    def __init__(self, num_levels: int, device: torch.device) -> None:
        self._num_levels, self._device = num_levels, device
        self._clear()

    def add(self, batch: Batch, loss: BatchLoss) -> None:
        """Takes one batch; the loss is not read back from the device."""
        index = batch.inputs["sample_index"]
        positions = batch.inputs["position_ids"]
        assert index is not None and positions is not None
        real = index >= 0
        learnt = batch.targets != IGNORE_INDEX
        self._loss += loss.total.detach()
        self._level_sums += loss.level_sums
        self._gate_sums += loss.gate_sums
        self._gate_histogram += loss.gate_histogram
        self._counts["gates"] += loss.gate_count
        self._level_counts += torch.bincount(
            batch.target_levels[learnt], minlength=self._num_levels + 1
        )
        tokens = int(real.sum())
        self._counts["tokens"] += tokens
        self._counts["padded"] += real.numel()
        self._counts["samples"] += len(batch.keys)
        self._counts["skipped"] += batch.num_skipped
        self._counts["keys"] += sum(int(key[:8], 16) for key in batch.keys)
        self._counts["images"] += batch.num_images
        # Σ over a sample of (2 · position + 1) is its length squared.
        self._counts["squares"] += int((2 * positions[real] + 1).sum())
        self.keys.extend(batch.keys)

    def waited(self, seconds: float) -> None:
        """Takes the time that the loop stood still for data."""
        self._counts["wait"] += seconds

    def reduce(self, is_stopping: bool) -> Totals:
        """Returns the sums over all processes, which must call this together."""
        import torch.distributed as dist

        counts = self._counts
        scalars = [0.0, float(self._level_counts.sum()), counts["tokens"], counts["padded"]]
        scalars += [counts["samples"], counts["images"], counts["squares"], counts["wait"]]
        scalars += [float(is_stopping), counts["gates"], counts["skipped"], counts["keys"]]
        vector = torch.cat(
            [
                torch.tensor(scalars, dtype=torch.float64).to(self._device),
                self._level_sums.double(),
                self._level_counts.double().to(self._device),
                self._gate_sums.double(),
                self._gate_histogram.flatten().double(),
            ]
        )
        vector[0] = self._loss.double()
        dist.all_reduce(vector)
        values = vector.tolist()
        levels = SCALARS + self._num_levels + 1
        gates = levels + self._num_levels + 1
        bins = gates + self._num_levels - 1
        self._clear()
        return Totals(
            loss_sum=values[0],
            targets=values[1],
            tokens=values[2],
            padded_tokens=values[3],
            samples=values[4],
            images=values[5],
            squared_lengths=values[6],
            wait_seconds=values[7],
            stop_votes=values[8],
            gate_count=values[9],
            skipped=values[10],
            key_sum=values[11],
            level_sums=tuple(values[SCALARS:levels]),
            level_counts=tuple(values[levels:gates]),
            gate_sums=tuple(values[gates:bins]),
            gate_histogram=tuple(
                tuple(values[start : start + BINS]) for start in range(bins, len(values), BINS)
            ),
        )

    def _clear(self) -> None:
        self._loss: Tensor = torch.zeros((), device=self._device)
        self._level_sums = torch.zeros(self._num_levels + 1, device=self._device)
        self._level_counts = torch.zeros(self._num_levels + 1, dtype=torch.int64)
        self._gate_sums = torch.zeros(self._num_levels - 1, device=self._device)
        self._gate_histogram = torch.zeros(self._num_levels - 1, BINS, device=self._device)
        names = ("tokens", "padded", "samples", "skipped", "keys", "images", "squares", "wait")
        self._counts: dict[str, float] = dict.fromkeys((*names, "gates"), 0.0)
        self.keys: list[str] = []
        """Of the samples since the last reduction, on this process."""
        self.started_at = time.perf_counter()
