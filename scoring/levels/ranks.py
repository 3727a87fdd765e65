"""Ranks over all pairs, exactly and in bounded memory, and the mean of several signals' ranks.

A rank says how many pairs lie below a pair in the order of (value, hash of the key), as levels
order them. Cuts part that order; the pairs between two cuts are few enough to be sorted, wherever
they come from, and how many lie below the first cut says where their ranks begin.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from scoring.levels.positions import ordered_codes

RANK_MEAN = "rank_mean:"

POSITION = np.dtype([("code", "<u4"), ("hash", "<u8")])
"""Where a pair stands: its value as a number that orders likewise, then its key's hash."""

Positions = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class RankMean:
    """The signals whose ranks are averaged."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def values(self, ranks: NDArray[np.int64], count: int) -> NDArray[np.float32]:
        """Returns the weighted mean of pairs' ranks as shares of all pairs, in (0, 1), (n,).

        Args:
            ranks: (signals, n), from 0.
            count: of all pairs that have ranks.
        """
        total = np.zeros(ranks.shape[1], np.float64)
        for weight, of_signal in zip(self.weights, ranks, strict=True):
            total += weight * (of_signal + 0.5)
        return (total / (sum(self.weights) * count)).astype(np.float32)


def parse_rank_mean(spelled: str) -> RankMean | None:
    """Returns what `rank_mean:a,b[:weights]` names; None if it is the name of a column.

    Raises:
        ConfigError: if it is neither.
    """
    if not spelled.startswith(RANK_MEAN):
        return None
    names_text, colon, weights_text = spelled.removeprefix(RANK_MEAN).partition(":")
    names = tuple(name.strip() for name in names_text.split(","))
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ConfigError(
            f"levels.by {spelled!r} must name two or more different columns, as in "
            "rank_mean:clip_score,negclip"
        )
    if not colon:
        return RankMean(names, (1.0,) * len(names))
    try:
        weights = tuple(float(text) for text in weights_text.split(","))
    except ValueError:
        weights = ()
    if len(weights) != len(names) or not all(0 < w < math.inf for w in weights):
        raise ConfigError(
            f"levels.by {spelled!r} must give {len(names)} positive weights after the second "
            f"colon, one for each column, as in {RANK_MEAN}{','.join(names)}:"
            + ",".join("2" if place == 0 else "1" for place in range(len(names)))
        )
    return RankMean(names, weights)


def positions_of(value: NDArray[np.float32], key_hash: NDArray[np.uint64]) -> Positions:
    """Returns where pairs stand, (n,).

    Raises:
        ValueError: if a value is NaN.
    """
    positions = np.empty(len(value), POSITION)
    positions["code"] = ordered_codes(value)
    positions["hash"] = key_hash
    return positions


def order_of(positions: Positions) -> NDArray[np.intp]:
    """Returns the places of positions from the lowest to the highest, (n,)."""
    return np.lexsort((positions["hash"], positions["code"]))


def even_sample(positions: Positions, size: int) -> Positions:
    """Returns up to so many of the positions, evenly chosen in their order."""
    ordered = positions[order_of(positions)]
    places = np.arange(min(size, len(ordered))) * len(ordered) // max(1, min(size, len(ordered)))
    return ordered[places]


def cuts_from(sample: Positions, parts: int) -> Positions:
    """Returns ascending positions that cut all pairs into so many parts, about equally large.

    Args:
        sample: of all pairs.
    """
    return even_sample(sample, parts)[1:]


def parts_of(positions: Positions, cuts: Positions) -> NDArray[np.int64]:
    """Returns the part that each position falls into, (n,): how many cuts are not above it."""
    part = np.zeros(len(positions), np.int64)
    for cut in cuts:
        is_equal = positions["code"] == cut["code"]
        is_above = is_equal & (positions["hash"] >= cut["hash"])
        part += (positions["code"] > cut["code"]) | is_above
    return part


def ranks_within(positions: Positions) -> NDArray[np.int64]:
    """Returns how many of the positions lie below each, (n,); of equal ones the earlier is lower.

    Shapes: n positions.
    """
    ranks = np.empty(len(positions), np.int64)
    ranks[order_of(positions)] = np.arange(len(positions))
    return ranks
