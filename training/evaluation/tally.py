"""The sums that a score is made of, and how far it might have come out otherwise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]
RESAMPLES = 2000
"""Of the bootstrap."""
SEED = 0
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums by unit (a picture with all its questions), and the score of their total.

    Shapes: U units, K sums.
    """

    units: tuple[str, ...]
    """Names of the units, by which two models' answers are paired."""
    sums: Sums
    """(U, K)."""
    headline: Callable[[Sums], Sums]
    """The score of sums (..., K), in the unit of the benchmark's published number."""

    def score(self) -> float:
        """Returns the score of all; 0 of none."""
        if not self.units:
            return 0.0
        return float(self.headline(self.sums.sum(axis=0)))

    def interval(self) -> tuple[float, float]:
        """Returns the 95 % interval of the bootstrap over units; (0, 0) of none."""
        if not self.units:
            return 0.0, 0.0
        drawn = self.headline(draw(self.sums))
        return quantiles(drawn)


def tally_of(
    units: Sequence[str], rows: Sequence[Sequence[float]], headline: Callable[[Sums], Sums]
) -> Tally:
    """Returns the tally of rows, those of one unit added.

    Args:
        units: for each row, what it belongs to.
        rows: (R, K).
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(units))}
    sums = np.zeros((len(names), len(rows[0]) if rows else 1))
    if rows:
        np.add.at(sums, [names[unit] for unit in units], np.asarray(rows, dtype=np.float64))
    return Tally(tuple(names), sums, headline)


def mean_tally(units: Sequence[str], scores: Sequence[float], factor: float = 100.0) -> Tally:
    """Returns the tally of a score that is the mean of the answers' scores."""

    def headline(sums: Sums) -> Sums:
        return factor * divided(sums[..., 0], sums[..., 1])

    return tally_of(units, [(score, 1.0) for score in scores], headline)


def divided(part: Sums, whole: Sums) -> Sums:
    """Returns part / whole, 0 where the whole is 0."""
    quotient: Sums = np.divide(part, whole, out=np.zeros(np.shape(whole)), where=whole != 0)
    return quotient


def draw(sums: Sums) -> Sums:
    """Returns totals of units drawn with replacement, (RESAMPLES, K).

    Units of equal sums are drawn together, by their number: the same distribution, in far less
    time and memory.
    """
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    total = int(counts.sum())
    drawn = np.random.default_rng(SEED).multinomial(total, counts / total, size=RESAMPLES)
    totals: Sums = drawn @ kinds
    return totals


def quantiles(values: Sums) -> tuple[float, float]:
    """Returns the bounds that hold the middle 95 %."""
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [outside, 1 - outside])
    return float(low), float(high)
