"""Which samples share a packed sequence at which step: decided before anything is read.

The plan of an epoch is a pure function of the samples' keys and lengths, the seed and the epoch.
It knows nothing of processes or workers, so a run resumes exactly by its step alone, on any
number of them. An epoch is planned in four movements:

1. the samples stand in the order of their keys and are shuffled by (seed, epoch);
2. they are cut into windows, and in each window packed best-fit: from the longest to the
   shortest, each into the fullest sequence that still has room;
3. each window's sequences are shuffled and dealt out to steps, the same number to every step;
4. what is left for the last step is spread over as many sequences as the others have, so that
   no process runs dry before another.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Packed = tuple[int, ...]
"""The samples of one packed sequence, as numbers of rows in the dataset."""


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
) -> EpochPlan:
    """Returns the plan of an epoch.

    Args:
        keys: of each sample; with `copies`, they decide the order that is shuffled.
        lengths: (samples,) tokens of each, at most `tokens_per_sequence`; 0 leaves a sample out.
        copies: (samples,) how often each sample is wanted, 1.5 for once or twice; None: once.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = _shuffled(keys, lengths, copies, rng)
    sequences: list[Packed] = []
    for start in range(0, len(order), packing_window):
        packed = pack(order[start : start + packing_window], lengths, tokens_per_sequence)
        sequences.extend(packed[i] for i in rng.permutation(len(packed)))
    whole = len(sequences) // sequences_per_step * sequences_per_step
    steps = [
        tuple(sequences[start : start + sequences_per_step])
        for start in range(0, whole, sequences_per_step)
    ]
    if whole < len(sequences):
        rest = sequences[whole:]
        steps.append(spread(rest, lengths, sequences_per_step, tokens_per_sequence))
    return EpochPlan(steps=tuple(steps))


def pack(samples: Sequence[int], lengths: np.ndarray, capacity: int) -> list[Packed]:
    """Returns the samples packed best-fit decreasing into sequences of `capacity` tokens.

    Source: Johnson et al., SIAM J. Comput. 3 (1974): at most 11/9 of the fewest sequences.
    """
    longest_first = sorted(samples, key=lambda sample: -int(lengths[sample]))
    sequences: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, number of the sequence), ascending
    for sample in longest_first:
        length = int(lengths[sample])
        place = bisect_left(room, (length, -1))
        if place < len(room):
            free, number = room.pop(place)
        else:
            free, number = capacity, len(sequences)
            sequences.append([])
        sequences[number].append(sample)
        if free > length:
            insort(room, (free - length, number))
    return [tuple(sequence) for sequence in sequences]


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
