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
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from training.config import LevelCurriculum

Packed = tuple[int, ...]
"""The samples of one packed sequence, as numbers of rows in the dataset."""


MOVED_SHARE = 0.5
"""How far `low_first` moves samples: their place in an epoch is to one half that of the shuffle, to
the other that of their level, so that steps stay mixed and neighbouring levels overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """When samples of which alignment level are seen."""

    kind: LevelCurriculum
    levels: np.ndarray
    """(samples,) from 1 on; 0 of those that were never levelled."""
    num_levels: int
    epochs: int

    def arranged(self, order: Sequence[int], epoch: int) -> list[int]:
        """Returns a shuffled epoch's samples as they are to come.

        `low_left_out` takes level l of N out when l / N of the run, by its samples, is over.
        """
        if self.kind == "none" or not len(order):
            return list(order)
        places = np.arange(len(order)) / len(order)
        levels = self.levels[np.asarray(order)]
        if self.kind == "low_left_out":
            done = (epoch + places) / self.epochs
            is_kept = (levels == 0) | (done * self.num_levels < levels)
            return [sample for sample, kept in zip(order, is_kept.tolist(), strict=True) if kept]
        of_level = (levels - 0.5) / self.num_levels
        wanted = np.where(levels == 0, places, (1 - MOVED_SHARE) * places + MOVED_SHARE * of_level)
        return [order[place] for place in np.argsort(wanted, kind="stable").tolist()]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The packed sequences of an epoch, step by step."""

    steps: tuple[tuple[Packed, ...], ...]
    """Of each step, its sequences; the same number in every step."""

    @property
    def num_samples(self) -> int:
        """How many samples an epoch has, repeats included."""
        return sum(len(sequence) for step in self.steps for sequence in step)


def plan_epoch(
    keys: Sequence[str],
    lengths: np.ndarray,
    *,
    copies: np.ndarray | None = None,
    seed: int,
    epoch: int,
    tokens_per_sequence: int,
    sequences_per_step: int,
    packing_window: int,
    curriculum: Curriculum | None = None,
) -> EpochPlan:
    """Returns the plan of an epoch.

    Args:
        keys: of each sample; with `copies`, they decide the order that is shuffled.
        lengths: (samples,) tokens of each, at most `tokens_per_sequence`; 0 leaves a sample out.
        copies: (samples,) how often each sample is wanted, 1.5 for once or twice; None: once.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = _shuffled(keys, lengths, copies, rng)
    if curriculum is not None:
        order = curriculum.arranged(order, epoch)
    sequences = pack(order, lengths, tokens_per_sequence, packing_window)
    whole = len(sequences) // sequences_per_step * sequences_per_step
    steps = [
        tuple(sequences[start : start + sequences_per_step])
        for start in range(0, whole, sequences_per_step)
    ]
    if whole < len(sequences):
        rest = sequences[whole:]
        steps.append(spread(rest, lengths, sequences_per_step, tokens_per_sequence))
    return EpochPlan(steps=tuple(steps))


def pack(samples: Sequence[int], lengths: np.ndarray, capacity: int, window: int) -> list[Packed]:
    """Returns the samples packed into sequences of at most `capacity` tokens.

    The sample that has waited longest always goes first, so none waits for ever. The others are
    the subset of the `window` next ones whose lengths add up to the most that has room: bit t of
    `reachable[i]` says whether some of the first i of them have t tokens together.

    Source: subset sum by dynamic programming (Bellman 1957), one machine word a 64 tokens. On the
    demo's pairs it needs as few sequences as any packing can, where best-fit decreasing needs 4 %
    more.
    """
    sizes = lengths.tolist()
    arriving = iter(samples)
    waiting: list[int] = []
    sequences: list[Packed] = []
    while True:
        waiting.extend(islice(arriving, window - len(waiting)))
        if not waiting:
            return sequences
        first, *others = waiting
        chosen = _best_subset([sizes[sample] for sample in others], capacity - sizes[first])
        sequences.append((first, *(others[i] for i in chosen)))
        taken = set(chosen)
        waiting = [sample for i, sample in enumerate(others) if i not in taken]


def _best_subset(sizes: Sequence[int], room: int) -> list[int]:
    """Returns which of the sizes add up to the most that is not above `room`, early ones first."""
    reachable = [1]
    within = (1 << (room + 1)) - 1
    for size in sizes:
        reachable.append((reachable[-1] | (reachable[-1] << size)) & within)
        if reachable[-1] >> room:
            break
    total = reachable[-1].bit_length() - 1
    chosen = []
    for i in range(len(reachable) - 1, 0, -1):
        if not reachable[i - 1] >> total & 1:
            chosen.append(i - 1)
            total -= sizes[i - 1]
    return chosen[::-1]


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


def padding_ratio(plan: EpochPlan, lengths: np.ndarray, tokens_per_sequence: int) -> float:
    """Returns the share of the packed sequences' tokens that is padding, the last step left out.

    The last step's sequences are padded to its longest one only.
    """
    steps = plan.steps[:-1] or plan.steps
    used = sum(int(lengths[sample]) for step in steps for packed in step for sample in packed)
    room = sum(len(step) for step in steps) * tokens_per_sequence
    return 1.0 - used / room if room else 0.0


def _shuffled(
    keys: Sequence[str], lengths: np.ndarray, copies: np.ndarray | None, rng: np.random.Generator
) -> list[int]:
    """Returns the samples in the epoch's order, each as often as it is wanted."""
    by_key = sorted(range(len(keys)), key=lambda sample: (keys[sample], sample))
    wanted = np.ones(len(keys)) if copies is None else copies
    draws = rng.random(len(keys))
    order: list[int] = []
    for position, sample in enumerate(by_key):
        if lengths[sample] > 0:
            times = int(wanted[sample] + draws[position])
            order.extend([sample] * times)
    return [order[i] for i in rng.permutation(len(order))]
