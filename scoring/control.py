"""Does a score tell anything? Real pairs beside exchanged ones, from embeddings that are stored.

A picture with its caption is held against the same picture with the captions of other pairs. A
model that knows nothing of the pairs prefers the own caption half of the time; that share, and the
area under the ROC curve, say how much the score of these pairs is worth. Which captions are taken
follows from the order of the rows alone. What is counted has a bounded size and adds up, so that
parts of a dataset can be counted one after another.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXCHANGES = 8
"""Other captions that each picture is held against."""

CONTROLLED_ROWS = 2048
"""Of a shard, whose signals are computed of exchanged pairs too: of 64 shards, the share of wins is
then known to a thousandth."""

MOST_CAPTIONS = 8
"""Captions of one pair that count: its score is the best of them, and so is that of an exchange."""

CELLS = 16_000
"""Cells of the histograms of scores over [-1, 1]."""

Z_95 = 1.959964
"""Two-sided 95 % of the normal distribution."""


def own_scores(image: NDArray[np.float32], text: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the cosines of pairs, (n,), from unit embeddings (n, d)."""
    return np.asarray(np.einsum("nd,nd->n", image, text, dtype=np.float32), np.float32)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Pictures with captions of other pairs."""

    partner: NDArray[np.int64]
    """Row of the pair whose caption each picture gets, (n, EXCHANGES); -1 where there is none."""
    cosine: NDArray[np.float32]
    """Of the picture and that caption, (n, EXCHANGES); NaN where there is none."""


def exchange_captions(
    image: NDArray[np.float32],
    text: NDArray[np.float32],
    captions: NDArray[np.int64],
    group: NDArray[np.int64] | None = None,
) -> Exchange:
    """Returns each picture with captions of other pairs.

    A picture whose own score is the best of k captions is held against the best of k others: else
    the choice alone would make the own pair win.

    Args:
        image: unit embeddings, (n, d).
        text: unit embeddings, (n, d).
        captions: how many captions each pair was scored with, (n,).
        group: code of the group within which captions are exchanged, (n,); all are one by default.
    """
    count = len(image)
    codes = np.zeros(count, np.int64) if group is None else group
    order = np.argsort(codes, kind="stable")
    _, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    start, size = np.repeat(first, sizes), np.repeat(sizes, sizes)
    place = np.arange(count) - start
    wanted = np.clip(captions, 1, MOST_CAPTIONS)
    shifts = min(EXCHANGES * int(wanted.max(initial=1)), max(count - 1, 0))
    cosine = np.full((count, shifts), np.nan, np.float32)
    partner = np.full((count, shifts), -1, np.int64)
    for shift in range(1, shifts + 1):
        rows = np.flatnonzero(size > shift)
        if not len(rows):
            break
        other = order[start[rows] + (place[rows] + shift) % size[rows]]
        partner[order[rows], shift - 1] = other
        cosine[order[rows], shift - 1] = own_scores(image[order[rows]], text[other])
    return _best_of_as_many(Exchange(partner, cosine), wanted)


def _best_of_as_many(tried: Exchange, wanted: NDArray[np.int64]) -> Exchange:
    """Returns of each so many exchanges in turn the best; none where they are not complete.

    Args:
        tried: (n, t) of both.
        wanted: how many each picture's best is of, (n,).
    """
    count, shifts = tried.cosine.shape
    cosine = np.full((count, EXCHANGES), np.nan, np.float32)
    partner = np.full((count, EXCHANGES), -1, np.int64)
    for number in np.unique(wanted).tolist():
        rows = np.flatnonzero(wanted == number)
        trials = min(EXCHANGES, shifts // number)
        shape = (len(rows), trials, number)
        of_rows = tried.cosine[rows, : trials * number].reshape(shape)
        is_whole = ~np.isnan(of_rows).any(axis=2)
        if not is_whole.any():
            continue
        best = np.where(np.isnan(of_rows), -np.inf, of_rows).argmax(axis=2)[..., None]
        others = tried.partner[rows, : trials * number].reshape(shape)
        found = np.take_along_axis(of_rows, best, axis=2)[..., 0]
        chosen = np.take_along_axis(others, best, axis=2)[..., 0]
        cosine[rows, :trials] = np.where(is_whole, found, np.nan)
        partner[rows, :trials] = np.where(is_whole, chosen, -1)
    return Exchange(partner, cosine)


@dataclass(frozen=True, slots=True)
class Wins:
    """How often pairs beat their exchanged ones."""

    pairs: int = 0
    """Those that have an exchanged one."""
    trials: int = 0
    share_sum: float = 0.0
    """Over the pairs, of the share of its exchanges that each beats; a tie is half."""
    square_sum: float = 0.0
    """The same of the squares."""

    @classmethod
    def of(cls, own: NDArray[np.float32], exchanged: NDArray[np.float32]) -> "Wins":
        """Returns the count of some pairs: own scores (n,) against exchanged ones (n, t)."""
        is_tried = ~np.isnan(exchanged)
        tried = is_tried.sum(axis=1)
        has_any = tried > 0
        won = (own[:, None] > exchanged) + 0.5 * (own[:, None] == exchanged)
        share = np.where(is_tried, won, 0.0).sum(axis=1)[has_any] / tried[has_any]
        return cls(int(has_any.sum()), int(tried.sum()), float(share.sum()), float(share @ share))

    def plus(self, other: "Wins") -> "Wins":
        """Returns the count of both."""
        return Wins(
            self.pairs + other.pairs,
            self.trials + other.trials,
            self.share_sum + other.share_sum,
            self.square_sum + other.square_sum,
        )

    @property
    def ratio(self) -> float:
        """Share of the exchanged pairs that are beaten; one half without pairs."""
        return self.share_sum / self.pairs if self.pairs else 0.5

    def interval(self, z: float = Z_95) -> tuple[float, float]:
        """Returns between what the share lies, so many standard errors wide on each side."""
        if not self.pairs:
            return 0.0, 1.0
        variance = max(self.square_sum / self.pairs - self.ratio**2, 0.0) / self.pairs
        return interval_of(self.ratio, variance, self.pairs, self.trials, z)


@dataclass(frozen=True, slots=True)
class ScoreCounts:
    """Histograms of scores, cell by cell over [-1, 1], and who wins."""

    own: NDArray[np.int64]
    """Pairs by their own score: (CELLS,)."""
    exchanged: NDArray[np.int64]
    """Exchanged pairs: (CELLS,)."""
    wins: Wins

    @classmethod
    def of(cls, own: NDArray[np.float32], exchanged: NDArray[np.float32]) -> "ScoreCounts":
        """Returns the counts of some pairs: own scores (n,) and exchanged ones (n, t)."""
        tried = exchanged[~np.isnan(exchanged)]
        return cls(_histogram(own), _histogram(tried), Wins.of(own, exchanged))

    def plus(self, other: "ScoreCounts") -> "ScoreCounts":
        """Returns the counts of both."""
        return ScoreCounts(
            self.own + other.own, self.exchanged + other.exchanged, self.wins.plus(other.wins)
        )


def area(own: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Returns how often a score of one histogram lies above one of another; equal ones are half.

    That is the area under the ROC curve. One half if either is empty.
    """
    if not own.sum() or not other.sum():
        return 0.5
    return float(own / own.sum() @ _below(other))


def area_interval(
    own: NDArray[np.int64], other: NDArray[np.int64], pairs: int
) -> tuple[float, float]:
    """Returns the 95 % interval of the area.

    The two histograms count as independent. Own and exchanged scores of a picture rise and fall
    together, so the interval is rather too wide than too narrow.

    Args:
        pairs: those that `other` was made from, several of whose exchanges may stand in it.

    Source: DeLong, DeLong and Clarke-Pearson (1988), doi 10.2307/2531595.
    """
    count = int(own.sum())
    if not count or not other.sum() or not pairs:
        return 0.0, 1.0
    first, second = own / count, other / other.sum()
    of_own, of_other = _below(other), 1.0 - _below(own)
    middle = float(first @ of_own)
    variance = max(float(first @ of_own**2) - middle**2, 0.0) / count
    variance += max(float(second @ of_other**2) - middle**2, 0.0) / pairs
    return interval_of(middle, variance, count, count, Z_95)


def interval_of(
    ratio: float, variance: float, least: int, most: int, z: float
) -> tuple[float, float]:
    """Returns between what a share lies: Wilson's interval for as many draws as it is worth.

    Args:
        variance: of the share; 0 counts as that of `least` draws.
        most: draws that it is worth at most.

    Source: Wilson (1927), doi 10.1080/01621459.1927.10502953, equation of the score interval.
    """
    draws = ratio * (1.0 - ratio) / variance if variance > 0 else float(least)
    draws = min(max(draws, 1.0), float(max(most, 1)))
    middle = (ratio + z**2 / (2 * draws)) / (1 + z**2 / draws)
    spread = math.sqrt(ratio * (1 - ratio) / draws + z**2 / (4 * draws**2))
    half = z / (1 + z**2 / draws) * spread
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share_between(counts: NDArray[np.int64], low: float, high: float) -> float:
    """Returns the share of a histogram between two scores; within a cell it counts as even."""
    total = int(counts.sum())
    if not total:
        return 0.0
    edges = np.linspace(-1.0, 1.0, CELLS + 1)
    below = np.interp([low, high], edges, np.concatenate([[0], np.cumsum(counts)]))
    return float(below[1] - below[0]) / total


def _histogram(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    cells = ((scores.astype(np.float64) + 1.0) / 2.0 * CELLS).astype(np.int64)
    return np.bincount(cells.clip(0, CELLS - 1), minlength=CELLS).astype(np.int64)


def _below(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the share of a histogram below each cell, with half of the cell itself: (CELLS,)."""
    return np.asarray((np.cumsum(counts) - counts / 2) / counts.sum(), np.float64)
