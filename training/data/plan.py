"""Which samples share a packed sequence at which step: decided before anything is read.

The plan of an epoch is a pure function of the samples' keys and lengths, the seed and the epoch.
It knows nothing of processes or workers, so a run resumes exactly by its step alone, on any
number of them. An epoch is planned in four movements:

1. the samples stand in the order of their keys and are shuffled by (seed, epoch), and moved or
   left out by their alignment levels if a curriculum says so;
2. sequence after sequence is filled: with the sample that has waited longest, and with those of
   the next waiting ones that together fill it best;
3. the sequences are dealt out to steps in this order, the same number to every step;
4. what is left for the last step is spread over as many sequences as the others have, so that
   no process runs dry before another.

All of it is arrays in files: a process maps what it asks for, and holds a step.
"""

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from training.config import LevelCurriculum
from training.data.mapped import (
    MappedFolders,
    index_type,
    map_array,
    pieces_of,
    stable_order,
    write_array,
)
from training.data.packing import COMPILED_FROM, Packed, pack

Step = tuple[Packed, ...]
"""The packed sequences of a step."""

MOVED_SHARE = 0.5
"""How far `low_first` moves samples: their place in an epoch is to one half that of the shuffle, to
the other that of their level, so that steps stay mixed and neighbouring levels overlap."""


class Wanted(Protocol):
    """How often each sample is wanted in an epoch, 1.5 for once or twice: an array, or as one."""

    def __getitem__(self, samples: np.ndarray, /) -> np.ndarray:
        """Returns how often each of some samples is wanted, (n,)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """When samples of which alignment level are seen."""

    kind: LevelCurriculum
    levels: np.ndarray
    """(samples,) from 1 on; 0 of those that were never levelled."""
    num_levels: int
    epochs: int

    def write_arranged(self, order: np.ndarray, epoch: int, folder: Path) -> np.ndarray:
        """Returns a shuffled epoch's samples as they are to come, mapped from a file in a folder.

        `low_left_out` takes level l of N out when l / N of the run, by its samples, is over.
        """
        path = folder / "arranged"
        if self.kind == "low_left_out":
            write_array(path, self._kept(order, epoch))
        else:
            write_array(folder / "wanted", self._wanted_places(order))
            places = stable_order(map_array(folder / "wanted", np.float64))
            write_array(path, (order[some] for some in places))
            (folder / "wanted").unlink()
        return map_array(path, order.dtype, is_writable=True)

    def _kept(self, order: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
        for start, samples in pieces_of(order):
            places = np.arange(start, start + len(samples)) / len(order)
            levels = self.levels[samples].astype(np.int64)
            done = (epoch + places) / self.epochs
            yield samples[(levels == 0) | (done * self.num_levels < levels)]

    def _wanted_places(self, order: np.ndarray) -> Iterator[np.ndarray]:
        for start, samples in pieces_of(order):
            places = np.arange(start, start + len(samples)) / len(order)
            levels = self.levels[samples].astype(np.int64)
            of_level = (levels - 0.5) / self.num_levels
            moved = (1 - MOVED_SHARE) * places + MOVED_SHARE * of_level
            yield np.where(levels == 0, places, moved)


class EpochPlan(Sequence[Step]):
    """The packed sequences of an epoch, step by step; the same number in every step.

    Args:
        flat: the samples of all sequences in turn, the first of each as `~sample`.
        starts: where in it each whole step begins, and where the last one ends.
        last: what is left for a step more; none if nothing is.
    """

    def __init__(self, flat: np.ndarray, starts: np.ndarray, last: Step) -> None:
        self._flat, self._starts, self._last = flat, starts, last

    def __len__(self) -> int:
        """Returns the number of steps."""
        return len(self._starts) - 1 + bool(self._last)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        """Returns the sequences of a step."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number == len(self._starts) - 1:
            return self._last
        return sequences_of(self._flat[self._starts[number] : self._starts[number + 1]])

    def __eq__(self, other: object) -> bool:
        """Returns whether another plan has the same steps."""
        if not isinstance(other, EpochPlan):
            return NotImplemented
        arrays = ((self._flat, other._flat), (self._starts, other._starts))
        return self._last == other._last and all(np.array_equal(a, b) for a, b in arrays)

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_samples(self) -> int:
        """How many samples an epoch has, repeats included."""
        return len(self._flat)

    def padding_ratio(self, lengths: np.ndarray, tokens_per_sequence: int) -> float:
        """Returns the share of padding in the packed sequences' tokens, the last step left out.

        The last step's sequences are padded to its longest one only.
        """
        steps = self[:-1] or self[:]
        used = sum(int(lengths[sample]) for step in steps for packed in step for sample in packed)
        room = sum(len(step) for step in steps) * tokens_per_sequence
        return 1.0 - used / room if room else 0.0


def sequences_of(flat: np.ndarray) -> Step:
    """Returns sequences that lie in an array one after the other, the first sample as `~sample`."""
    sequences: list[list[int]] = []
    for sample in flat.tolist():
        if sample < 0:
            sequences.append([~sample])
        else:
            sequences[-1].append(sample)
    return tuple(map(tuple, sequences))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What decides the plan of an epoch, beside its samples."""

    seed: int
    epoch: int
    tokens_per_sequence: int
    sequences_per_step: int
    packing_window: int
    compiled_from: int = COMPILED_FROM
    """Samples from which they are packed by compiled code: the same, sooner or later."""


def plan_epoch(
    by_key: np.ndarray,
    lengths: np.ndarray,
    settings: PlanSettings,
    *,
    copies: Wanted | None = None,
    curriculum: Curriculum | None = None,
    kept: MappedFolders | None = None,
    name: str = "",
) -> EpochPlan:
    """Returns the plan of an epoch.

    Args:
        by_key: (samples,) numbers of the samples in the order of their keys, which is shuffled.
        lengths: (samples,) tokens of each, at most `tokens_per_sequence`; 0 leaves a sample out.
        copies: how often each sample is wanted; None: once.
        kept: where the plan is kept; by default in a temporary folder.
        name: there, with a hash of all that decides the plan.

    Raises:
        ConfigError: if there is no room for it.
        StorageError: if the disk takes no more.
    """

    def write(folder: Path) -> None:
        flat = _write_shuffled(by_key, lengths, copies, settings, folder)
        if curriculum is not None and curriculum.kind != "none":
            flat = curriculum.write_arranged(flat, settings.epoch, folder)
            (folder / "arranged").replace(folder / "flat")
        _pack_in_place(flat, lengths, settings)
        write_array(folder / "starts", [_step_starts(flat, settings.sequences_per_step)])

    def read(folder: Path) -> EpochPlan:
        flat = map_array(folder / "flat", index_type(len(by_key)))
        starts = map_array(folder / "starts", np.int64)
        rest = sequences_of(flat[starts[-1] :])
        count, room = settings.sequences_per_step, settings.tokens_per_sequence
        return EpochPlan(flat, starts, spread(rest, lengths, count, room) if rest else ())

    return (kept or MappedFolders()).opened(
        name, write, read, rows=len(by_key), num_bytes=len(by_key) * by_key.dtype.itemsize
    )


def _write_shuffled(
    by_key: np.ndarray,
    lengths: np.ndarray,
    copies: Wanted | None,
    settings: PlanSettings,
    folder: Path,
) -> np.ndarray:
    """Returns the samples in the epoch's order, each as often as it is wanted, mapped from a file.

    Numbers are drawn in pieces, and the array itself is shuffled: both give the same numbers as
    drawing all at once, and as taking the array by a permutation.
    """
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, settings.epoch]))

    def wanted() -> Iterator[np.ndarray]:
        for _, samples in pieces_of(by_key):
            often = np.ones(len(samples)) if copies is None else copies[samples]
            times = (often + rng.random(len(samples))).astype(np.int64)
            times[lengths[samples] <= 0] = 0
            yield np.repeat(samples, times).astype(index_type(len(by_key)))

    write_array(folder / "flat", wanted())
    order = map_array(folder / "flat", index_type(len(by_key)), is_writable=True)
    rng.shuffle(order)
    return order


def _pack_in_place(order: np.ndarray, lengths: np.ndarray, settings: PlanSettings) -> None:
    """Turns an order of samples into those of all sequences, the first of each as `~sample`."""
    capacity, window = settings.tokens_per_sequence, settings.packing_window
    if len(order) >= settings.compiled_from:
        from training.data.compiled_packing import pack_in_place

        pack_in_place(order, lengths, capacity, window)
        return
    packed = pack(order.tolist(), lengths, capacity, window)
    samples = [sample for first, *others in packed for sample in (~first, *others)]
    order[:] = np.array(samples, order.dtype)


def _step_starts(flat: np.ndarray, sequences_per_step: int) -> np.ndarray:
    """Returns where whole steps begin, and where the last of them ends, as int64."""
    found = []
    seen = 0
    for start, piece in pieces_of(flat):
        firsts = np.flatnonzero(piece < 0) + start
        # Copied: a view would keep the places of all sequences.
        found.append(firsts[-seen % sequences_per_step :: sequences_per_step].copy())
        seen += len(firsts)
    if seen % sequences_per_step == 0:
        found.append(np.array([len(flat)]))
    return np.concatenate(found).astype(np.int64)


def spread(
    packed: Sequence[Packed], lengths: np.ndarray, count: int, capacity: int
) -> tuple[Packed, ...]:
    """Returns the samples of fewer sequences in `count` of about equal length; some may be empty.

    The longest go first, each to the shortest sequence. Should that ever overfill one, the
    sequences stay as they are and empty ones follow them.
    """
    samples = [sample for sequence in packed for sample in sequence]
    sequences: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, number) for number in range(count)]
    for sample in sorted(samples, key=lambda sample: -int(lengths[sample])):
        used, number = filled.pop(0)
        sequences[number].append(sample)
        insort(filled, (used + int(lengths[sample]), number))
    if filled[-1][0] > capacity:
        return (*packed, *[()] * (count - len(packed)))
    return tuple(tuple(sequence) for sequence in sequences)
