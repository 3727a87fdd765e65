"""Counts pairs by the bits of their positions, for the search of the edges between levels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scoring.levels.positions import (
    BITS_OF_CELL,
    CELL_OF_BITS,
    checked_bits,
    codes_of_bits,
    score_of,
    upper_half,
)

PASS_BITS = 16
POSITION_BITS = 96
NUM_PASSES = POSITION_BITS // PASS_BITS
CELLS = 1 << PASS_BITS
CHUNK_ROWS = 1 << 18  # two megabytes at most in each temporary array: fits a core's cache
ZERO_CELLS = {int(CELL_OF_BITS[0]), int(CELL_OF_BITS[1 << 15])}
FEW = 32  # comparing with each of so few numbers is quicker than searching among them


class KeyHashes(Protocol):
    """The first 64 bits of the pairs' keys: an array, or what makes them only when asked."""

    def __getitem__(self, rows: NDArray[np.intp], /) -> NDArray[np.uint64]:
        """Returns the hashes of some rows."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many pairs lie in which cell; cells without pairs are not listed."""

    cells: NDArray[np.int64]
    """Ascending: place among the searched prefixes * 65,536 + the 16 bits that follow."""
    counts: NDArray[np.int64]

    @property
    def total(self) -> int:
        """Number of pairs that were counted."""
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True)
class LevelEdges:
    """The positions at which the levels begin."""

    num_levels: int
    cut: int
    """Position from which pairs are levelled at all; 0 takes them all."""
    edges: tuple[int | None, ...]
    """Position at which level i + 2 begins, ascending; None where no pair is as high."""


@dataclass(frozen=True, slots=True)
class EdgeSearch:
    """What is known of the cut and the edges after some passes over the data."""

    num_levels: int
    top_fraction: float = 1.0
    passes_done: int = 0
    prefixes: tuple[int | None, ...] = ()
    """First bits of the position of the cut and of each edge; None where no pair is as high."""
    inside: tuple[int, ...] = ()
    """How many pairs with these first bits lie below it."""
    total: int = 0
    """Number of pairs, n."""
    kept: int = 0
    """Number of pairs from the cut upwards."""

    @property
    def is_done(self) -> bool:
        """Whether the positions separate the pairs as they should."""
        return self.passes_done == NUM_PASSES or (self.passes_done > 0 and not any(self.inside))

    @property
    def searched(self) -> tuple[int, ...]:
        """Prefixes whose pairs the next pass counts, ascending."""
        if self.passes_done == 0:
            return (0,)
        pairs = zip(self.prefixes, self.inside, strict=True)
        return tuple(sorted({prefix for prefix, below in pairs if prefix is not None and below}))

    @property
    def edges(self) -> LevelEdges:
        """The edges, once the search is done."""
        shift = POSITION_BITS - PASS_BITS * self.passes_done
        cut, *edges = (None if prefix is None else prefix << shift for prefix in self.prefixes)
        return LevelEdges(self.num_levels, cut or 0, tuple(edges))


def count_cells(
    search: EdgeSearch,
    clip_score: NDArray[np.float32],
    key_hash: KeyHashes | None = None,
) -> Histogram:
    """Returns how many of these pairs lie in which cell of the next pass.

    Args:
        key_hash: may be None as long as the search does not need it.
    """
    if search.passes_done:
        return merge_histograms(_histograms(search, clip_score, key_hash))
    dense = np.zeros(CELLS, np.int64)
    for chunk in chunks(len(clip_score)):
        dense += np.bincount(upper_half(checked_bits(clip_score[chunk])), minlength=CELLS)
    dense = dense[BITS_OF_CELL]
    cells = np.flatnonzero(dense)
    return Histogram(cells.astype(np.int64), dense[cells])


def merge_histograms(histograms: Iterable[Histogram]) -> Histogram:
    """Returns the sum of histograms of one pass, in memory that does not grow with their number."""
    waiting: list[Histogram] = []
    listed = 0
    for histogram in histograms:
        waiting.append(histogram)
        listed += len(histogram.cells)
        if listed > 1 << 20 and len(waiting) > 1:
            waiting = [_merged(waiting)]
            listed = len(waiting[0].cells)
    return _merged(waiting)


def _histograms(
    search: EdgeSearch, clip_score: NDArray[np.float32], key_hash: KeyHashes | None
) -> Iterator[Histogram]:
    """Yields the histograms of a later pass over parts of the pairs."""
    waiting: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    listed = 0
    for chunk in chunks(len(clip_score)):
        waiting.append(_later_cells(search, clip_score[chunk], key_hash, chunk.start))
        listed += len(waiting[-1])
        if listed > 1 << 20:
            yield _histogram(np.concatenate(waiting))
            waiting, listed = [], 0
    if waiting:
        yield _histogram(np.concatenate(waiting))


def _histogram(cells: NDArray[np.int64]) -> Histogram:
    """Returns how often each cell occurs."""
    if cells.max(initial=0) < max(len(cells), CELLS):
        dense = np.bincount(cells)
        found = np.flatnonzero(dense)
        return Histogram(found.astype(np.int64), dense[found].astype(np.int64))
    found, counts = np.unique(cells, return_counts=True)
    return Histogram(found, counts.astype(np.int64))


def _later_cells(
    search: EdgeSearch, score: NDArray[np.float32], key_hash: KeyHashes | None, start: int
) -> NDArray[np.int64]:
    """Returns the cells of those pairs that a pass after the first counts.

    Args:
        start: where in `key_hash` the pairs begin.
    """
    drop = PASS_BITS * (search.passes_done - 1)
    if search.passes_done == 1:
        # The first pass met no NaN; -0.0 needs care only where the cell of a zero is counted.
        is_raw = not ZERO_CELLS & set(search.searched)
        bits = score.view(np.uint32) if is_raw else checked_bits(score)
        codes = codes_of_bits(bits[_rows_of_cells(bits, search.searched)])
        slot = count_below(search.searched, codes >> np.uint32(16))
        return slot.astype(np.int64) << PASS_BITS | (codes & np.uint32(0xFFFF))
    if key_hash is None:
        raise ValueError("this pass needs the hashes of the keys")
    sought = {prefix >> (drop - 16) for prefix in search.searched}
    if len(sought) <= FEW // 2:
        rows = np.flatnonzero(_is_equal_to_one(score, [score_of(code << 64) for code in sought]))
        codes = codes_of_bits(checked_bits(score[rows]))
    else:
        bits = checked_bits(score)
        rows = _rows_of_cells(bits, {prefix >> drop for prefix in search.searched})
        codes = codes_of_bits(bits[rows])
    return _cells_of_hashes(search, codes, rows + start, key_hash)


def _is_equal_to_one(score: NDArray[np.float32], wanted: list[float]) -> NDArray[np.bool_]:
    """Returns which scores are among a few numbers, (n,)."""
    is_equal = np.zeros(len(score), np.bool_)
    for number in wanted:
        is_equal |= score == np.float32(number)
    return is_equal


def _cells_of_hashes(
    search: EdgeSearch,
    codes: NDArray[np.uint32],
    rows: NDArray[np.intp],
    key_hash: KeyHashes,
) -> NDArray[np.int64]:
    """Returns the cells of those of the pairs that have a searched prefix of 32 bits or more.

    Args:
        rows: where in `key_hash` the pairs stand whose codes are given.
    """
    bits = PASS_BITS * search.passes_done
    scores = sorted({prefix >> (bits - 32) for prefix in search.searched})
    is_sought = _is_one_of(scores, codes)
    hashes = key_hash[rows[is_sought]]
    upper = codes[is_sought].astype(np.uint64) << np.uint64(32) | hashes >> np.uint64(32)
    first_bits = min(bits, 64)
    heads = sorted({prefix >> (bits - first_bits) for prefix in search.searched})
    slot, places = _places(upper >> np.uint64(64 - first_bits), heads)
    hashes = hashes[places]
    if bits > 64:
        tails = [
            heads.index(prefix >> PASS_BITS) << PASS_BITS | prefix & (CELLS - 1)
            for prefix in search.searched
        ]
        middle = (hashes >> np.uint64(16)) & np.uint64(0xFFFF)
        slot, places = _places(slot.astype(np.uint64) << np.uint64(PASS_BITS) | middle, tails)
        hashes = hashes[places]
    next_bits = hashes >> np.uint64(POSITION_BITS - bits - PASS_BITS) & np.uint64(0xFFFF)
    return slot << PASS_BITS | next_bits.astype(np.int64)


def _places(
    values: NDArray[np.uint64], wanted: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Returns for the values that are wanted their place in that ascending list, and their rows."""
    sought = np.array(wanted, np.uint64)
    place = np.minimum(np.searchsorted(sought, values), len(sought) - 1)
    rows = np.flatnonzero(sought[place] == values)
    return place[rows].astype(np.int64), rows


def _rows_of_cells(bits: NDArray[np.uint32], cells: Iterable[int]) -> NDArray[np.intp]:
    """Returns the rows whose position begins with one of these 16 bits."""
    wanted = BITS_OF_CELL[list(cells)].astype(np.uint16)
    if len(wanted) <= FEW:
        upper = np.ascontiguousarray(upper_half(bits))
        is_found = np.zeros(len(upper), np.bool_)
        for number in wanted:
            is_found |= upper == number
        return np.flatnonzero(is_found)
    is_wanted = np.zeros(CELLS, np.bool_)
    is_wanted[wanted] = True
    return np.flatnonzero(is_wanted.take(upper_half(bits), mode="wrap"))


def count_below(wanted: Sequence[int], values: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Returns for each value how many of the ascending numbers are below it."""
    if len(wanted) > FEW:
        return np.searchsorted(np.array(wanted, np.uint32), values, side="left")
    count = np.zeros(len(values), np.int8)
    for number in wanted:
        count += values > np.uint32(number)
    return count.astype(np.intp)


def _is_one_of(wanted: Sequence[int], values: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Returns which values are among the ascending numbers."""
    place = count_below(wanted, values)
    return np.array([*wanted, 0], np.uint32)[place] == values if len(wanted) else place < 0


def chunks(count: int) -> Iterator[slice]:
    """Yields the rows in parts that fit a core's cache."""
    for start in range(0, count, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, count))


def _merged(histograms: list[Histogram]) -> Histogram:
    if len(histograms) == 1:
        return histograms[0]
    empty = np.empty(0, np.int64)
    cells = np.concatenate([empty, *(histogram.cells for histogram in histograms)])
    counts = np.concatenate([empty, *(histogram.counts for histogram in histograms)])
    found, inverse = np.unique(cells, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, inverse, counts)
    return Histogram(found, sums)
