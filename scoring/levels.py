"""Cuts scores into equally large alignment levels, exactly and in constant memory.

The level of a pair is 1 + floor(N * rank / n), its rank taken over all n pairs ordered by
(score, hash of the key). No sort is needed to find it. Score and hash together are a 96-bit
*position* that orders as the pair does. Counting the pairs by the first 16 bits of their positions
says in which of 65,536 cells each edge between two levels lies, and how many pairs of that cell
lie below it. Counting the pairs of those cells alone by the next 16 bits says it more finely, and
so on: six passes at most, fewer as soon as every edge falls on the border of a cell. A count is a
`Histogram`; histograms of parts of the data add up to that of the whole, so that the parts can be
counted anywhere and in any order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scoring.level_positions import (
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
CHUNK_ROWS = 1 << 18  # two megabytes at most in each temporary array: fits a core's cache

_CELLS = 1 << PASS_BITS
FEW = 32  # comparing with each of so few numbers is quicker than searching among them


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
    def needs_hashes(self) -> bool:
        """Whether the next pass looks beyond the score."""
        return self.passes_done * PASS_BITS >= 32

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


def assign_levels(
    clip_score: NDArray[np.float32], key_hash: NDArray[np.uint64], num_levels: int
) -> NDArray[np.int8]:
    """Returns the alignment levels, 1 (worst) to `num_levels`, as int8 (n,).

    The numbers of pairs in the levels differ by at most one. Of equal scores the smaller hash is
    the lower; where the hash is equal too, the earlier row.

    Args:
        clip_score: (n,), any numbers but NaN; -0.0 counts as 0.0.
        key_hash: (n,), the first 64 bits of the pairs' keys.

    Raises:
        ValueError: if a score is NaN or the arguments do not fit together.
    """
    score = np.asarray(clip_score, dtype=np.float32)
    hashes = np.asarray(key_hash, dtype=np.uint64)
    if score.ndim != 1 or score.shape != hashes.shape:
        raise ValueError(
            f"clip_score and key_hash must be of one shape (n,), got {score.shape}, {hashes.shape}"
        )
    if not 1 <= num_levels <= 127:
        raise ValueError(f"num_levels must be in 1..127 (levels are int8), got {num_levels}")
    search = EdgeSearch(num_levels)
    while not search.is_done:
        counted = (
            count_cells(search, score[start : start + CHUNK_ROWS], hashes[start:][:CHUNK_ROWS])
            for start in range(0, len(score), CHUNK_ROWS)
        )
        search = refine(search, merge_histograms(counted))
    levels = levels_from_edges(score, hashes, search.edges)
    _split_identical(search, score, hashes, levels)
    return levels


def count_cells(
    search: EdgeSearch,
    clip_score: NDArray[np.float32],
    key_hash: NDArray[np.uint64] | None = None,
) -> Histogram:
    """Returns how many of these pairs lie in which cell of the next pass.

    Args:
        key_hash: may be None as long as the search does not need it.
    """
    bits = checked_bits(clip_score)
    if search.passes_done == 0:
        dense = np.bincount(upper_half(bits), minlength=_CELLS)[BITS_OF_CELL]
        cells = np.flatnonzero(dense)
        return Histogram(cells.astype(np.int64), dense[cells].astype(np.int64))
    drop = PASS_BITS * (search.passes_done - 1)
    rows = _rows_of_cells(bits, {prefix >> drop for prefix in search.searched})
    codes = codes_of_bits(bits[rows])
    if search.passes_done == 1:
        slot = _count_below(search.searched, codes >> np.uint32(16))
        cells = slot.astype(np.int64) << PASS_BITS | (codes & np.uint32(0xFFFF))
    else:
        if key_hash is None:
            raise ValueError("this pass needs the hashes of the keys")
        cells = _cells_of_hashes(search, codes, rows, key_hash)
    found, counts = np.unique(cells, return_counts=True)
    return Histogram(found, counts.astype(np.int64))


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


def refine(search: EdgeSearch, histogram: Histogram) -> EdgeSearch:
    """Returns what is known once a pass over all pairs has counted `histogram`."""
    if search.passes_done == 0:
        search = _with_targets(search, histogram.total)
    searched = search.searched if search.passes_done else (0,)
    prefixes: list[int | None] = []
    inside: list[int] = []
    for prefix, below in zip(search.prefixes, search.inside, strict=True):
        if prefix is None or below == 0:
            prefixes.append(None if prefix is None else prefix << PASS_BITS)
            inside.append(0)
            continue
        cell, rest = _cell_with_rank(histogram, searched.index(prefix), below)
        prefixes.append(prefix << PASS_BITS | cell)
        inside.append(rest)
    return EdgeSearch(
        num_levels=search.num_levels,
        top_fraction=search.top_fraction,
        passes_done=search.passes_done + 1,
        prefixes=tuple(prefixes),
        inside=tuple(inside),
        total=search.total,
        kept=search.kept,
    )


def levels_from_edges(
    clip_score: NDArray[np.float32], key_hash: NDArray[np.uint64], edges: LevelEdges
) -> NDArray[np.int8]:
    """Returns the levels of pairs by edges that are known, int8 (n,); 0 for pairs below the cut."""
    thresholds = [edges.cut, *(edge for edge in edges.edges if edge is not None)]
    codes = np.array([threshold >> 64 for threshold in thresholds], np.uint64)
    starts = np.arange(_CELLS, dtype=np.uint64) << np.uint64(PASS_BITS)
    # A cell is of one level unless a threshold lies in it beyond its first position.
    table = np.searchsorted(codes, starts, side="right").astype(np.int8)
    table[[threshold >> 80 for threshold in thresholds if threshold & ((1 << 80) - 1)]] = -1
    table = table[CELL_OF_BITS]
    levels = np.empty(len(clip_score), np.int8)
    for start in range(0, len(clip_score), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        bits = checked_bits(clip_score[chunk])
        part = table.take(upper_half(bits), out=levels[chunk], mode="wrap")
        rows = np.flatnonzero(part < 0)
        part[rows] = _count_not_above(thresholds, codes_of_bits(bits[rows]), rows, key_hash[chunk])
    return levels


def population_stability_index(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Returns how far the shares of the levels moved: 0 is not at all.

    Below 0.1 is usually called stable, above 0.25 a clear shift. Half a pair is added to every
    level, so that an empty one is no division by zero.

    Args:
        expected: pairs in each level when the edges were cut, (num_levels,).
        found: pairs in each level now, (num_levels,).

    Source: Siddiqi, Credit Risk Scorecards (2006), chapter 6: sum of (q - p) ln(q / p).
    """
    old = (np.asarray(expected, np.float64) + 0.5) / (np.sum(expected) + 0.5 * len(expected))
    new = (np.asarray(found, np.float64) + 0.5) / (np.sum(found) + 0.5 * len(found))
    return float(np.sum((new - old) * np.log(new / old)))


def _with_targets(search: EdgeSearch, total: int) -> EdgeSearch:
    """Returns the search with the ranks that it looks for: of the cut and of each first pair."""
    kept = total
    if search.top_fraction < 1.0 and total:
        kept = max(1, round(search.top_fraction * total))
    cut = total - kept
    # 1 + floor(N * rank / n) >= i + 1 from rank = ceil(i * n / N) on.
    firsts = [cut - (-level * kept // search.num_levels) for level in range(1, search.num_levels)]
    ranks = [cut, *firsts]
    return EdgeSearch(
        num_levels=search.num_levels,
        top_fraction=search.top_fraction,
        prefixes=tuple(0 if rank < total else None for rank in ranks),
        inside=tuple(rank if rank < total else 0 for rank in ranks),
        total=total,
        kept=kept,
    )


def _cell_with_rank(histogram: Histogram, slot: int, rank: int) -> tuple[int, int]:
    """Returns the cell of a searched prefix that holds its pair of this rank, and the rank in it.

    Where the rank is the first of its cell, the cell's start separates exactly.
    """
    first, last = np.searchsorted(histogram.cells, [slot << PASS_BITS, (slot + 1) << PASS_BITS])
    running = np.cumsum(histogram.counts[first:last])
    place = int(np.searchsorted(running, rank, side="right"))
    below = int(running[place - 1]) if place else 0
    return int(histogram.cells[first + place]) & (_CELLS - 1), rank - below


def _cells_of_hashes(
    search: EdgeSearch,
    codes: NDArray[np.uint32],
    rows: NDArray[np.intp],
    key_hash: NDArray[np.uint64],
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
            heads.index(prefix >> PASS_BITS) << PASS_BITS | prefix & (_CELLS - 1)
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
    is_wanted = np.zeros(_CELLS, np.bool_)
    is_wanted[list(cells)] = True
    return np.flatnonzero(is_wanted[CELL_OF_BITS].take(upper_half(bits), mode="wrap"))


def _count_below(wanted: Sequence[int], values: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Returns for each value how many of the ascending numbers are below it."""
    if len(wanted) > FEW:
        return np.searchsorted(np.array(wanted, np.uint32), values, side="left")
    count = np.zeros(len(values), np.int8)
    for number in wanted:
        count += values > np.uint32(number)
    return count.astype(np.intp)


def _is_one_of(wanted: Sequence[int], values: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Returns which values are among the ascending numbers."""
    place = _count_below(wanted, values)
    return np.array([*wanted, 0], np.uint32)[place] == values if len(wanted) else place < 0


def _count_not_above(
    thresholds: list[int],
    codes: NDArray[np.uint32],
    rows: NDArray[np.intp],
    key_hash: NDArray[np.uint64],
) -> NDArray[np.int8]:
    """Returns for each pair how many of the ascending thresholds are not above its position.

    Args:
        rows: where in `key_hash` the pairs stand whose codes are given.
    """
    scores = [threshold >> 64 for threshold in thresholds]
    count = _count_below(scores, codes).astype(np.int8)
    equal = np.flatnonzero(np.append(scores, 0).astype(np.uint32)[count] == codes)
    hashes = key_hash[rows[equal]]
    codes = codes[equal]
    for threshold in thresholds:
        lowest = np.uint64(threshold & ((1 << 64) - 1))
        count[equal] += (codes == np.uint32(threshold >> 64)) & (hashes >= lowest)
    return count


def _split_identical(
    search: EdgeSearch,
    score: NDArray[np.float32],
    hashes: NDArray[np.uint64],
    levels: NDArray[np.int8],
) -> None:
    """Ranks by their row the pairs of one position that an edge falls among."""
    for position in {p for p, below in zip(search.prefixes, search.inside, strict=True) if below}:
        assert position is not None
        level = search.prefixes.index(position)
        first_rank = -(-level * search.kept // search.num_levels) - search.inside[level]
        is_code = score == np.float32(score_of(position))
        rows = np.flatnonzero(is_code & (hashes == np.uint64(position & ((1 << 64) - 1))))
        ranks = first_rank + np.arange(len(rows), dtype=np.int64)
        levels[rows] = 1 + search.num_levels * ranks // search.kept


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
