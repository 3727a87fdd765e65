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

import numpy as np
from numpy.typing import NDArray

from scoring.levels.counts import (
    CELLS,
    FEW,
    NUM_PASSES,
    PASS_BITS,
    EdgeSearch,
    Histogram,
    KeyHashes,
    LevelEdges,
    chunks,
    count_below,
    count_cells,
    merge_histograms,
)
from scoring.levels.positions import (
    CELL_OF_BITS,
    checked,
    checked_bits,
    codes_of_bits,
    position_of,
    score_of,
    upper_half,
)

HASH_BITS = (1 << 64) - 1

__all__ = [
    "NUM_PASSES",
    "EdgeSearch",
    "Histogram",
    "LevelEdges",
    "assign_levels",
    "count_cells",
    "levels_from_edges",
    "merge_histograms",
    "population_stability_index",
    "refine",
]


def assign_levels(
    clip_score: NDArray[np.float32], key_hash: NDArray[np.uint64], num_levels: int
) -> NDArray[np.int8]:
    """Returns the alignment levels, 1 (worst) to `num_levels`, as int8 (n,).

    The numbers of pairs in the levels differ by at most one. Of equal scores the smaller hash is
    the lower; where the hash is equal too, the earlier row. For scores that fit into memory; the
    pipeline finds the same edges by `EdgeSearch`, shard by shard.

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
        search = refine(search, count_cells(search, score, hashes))
    levels = levels_from_edges(score, hashes, search.edges)
    _split_identical(search, score, hashes, levels)
    return levels


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
    clip_score: NDArray[np.float32], key_hash: KeyHashes, edges: LevelEdges
) -> NDArray[np.int8]:
    """Returns the levels of pairs by edges that are known, int8 (n,); 0 for pairs below the cut."""
    thresholds = [edges.cut, *(edge for edge in edges.edges if edge is not None)]
    if len(thresholds) <= FEW:
        return _levels_by_comparing(clip_score, key_hash, thresholds)
    codes = np.array([threshold >> 64 for threshold in thresholds], np.uint64)
    starts = np.arange(CELLS, dtype=np.uint64) << np.uint64(PASS_BITS)
    # A cell is of one level unless a threshold lies in it beyond its first position.
    table = np.searchsorted(codes, starts, side="right").astype(np.int8)
    table[[threshold >> 80 for threshold in thresholds if threshold & ((1 << 80) - 1)]] = -1
    table = table[CELL_OF_BITS]
    levels = np.empty(len(clip_score), np.int8)
    for chunk in chunks(len(clip_score)):
        bits = checked_bits(clip_score[chunk])
        part = table.take(upper_half(bits), out=levels[chunk], mode="wrap")
        rows = np.flatnonzero(part < 0)
        part[rows] = _count_not_above(
            thresholds, codes_of_bits(bits[rows]), rows + chunk.start, key_hash
        )
    return levels


def population_stability_index(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Returns how far the shares of the classes moved: 0 is not at all.

    Below 0.1 is usually called stable, above 0.25 a clear shift. Half a pair is added to every
    class, so that an empty one is no division by zero.

    Args:
        expected: pairs in each class when the edges were cut, (c,): the levels, and what is below.
        found: pairs in each class now, (c,).

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
    return int(histogram.cells[first + place]) & (CELLS - 1), rank - below


def _levels_by_comparing(
    clip_score: NDArray[np.float32], key_hash: KeyHashes, thresholds: list[int]
) -> NDArray[np.int8]:
    """Returns for each pair how many of a few ascending thresholds are not above its position."""
    lowest = position_of(-np.inf, 0)  # below it are only codes that no score has
    steps = [
        (np.float32(score_of(position)), np.uint64(position & HASH_BITS))
        for position in (max(threshold, lowest) for threshold in thresholds)
    ]
    levels = np.zeros(len(clip_score), np.int8)
    for chunk in chunks(len(clip_score)):
        score, part = checked(clip_score[chunk]), levels[chunk]
        is_above = np.empty(len(score), np.bool_)
        is_open = np.zeros(len(score), np.bool_)
        for edge, first_hash in steps:
            part += np.greater_equal(score, edge, out=is_above).view(np.int8)
            if first_hash:
                is_open |= np.equal(score, edge, out=is_above)
        rows = np.flatnonzero(is_open)
        if len(rows):
            tied, hashes = score[rows], key_hash[rows + chunk.start]
            for edge, first_hash in steps:
                part[rows] -= (tied == edge) & (hashes < first_hash)
    return levels


def _count_not_above(
    thresholds: list[int],
    codes: NDArray[np.uint32],
    rows: NDArray[np.intp],
    key_hash: KeyHashes,
) -> NDArray[np.int8]:
    """Returns for each pair how many of the ascending thresholds are not above its position.

    Args:
        rows: where in `key_hash` the pairs stand whose codes are given.
    """
    scores = [threshold >> 64 for threshold in thresholds]
    count = count_below(scores, codes).astype(np.int8)
    equal = np.flatnonzero(np.append(scores, 0).astype(np.uint32)[count] == codes)
    hashes = key_hash[rows[equal]]
    codes = codes[equal]
    for threshold in thresholds:
        lowest = np.uint64(threshold & HASH_BITS)
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
        rows = np.flatnonzero(is_code & (hashes == np.uint64(position & HASH_BITS)))
        ranks = first_rank + np.arange(len(rows), dtype=np.int64)
        levels[rows] = 1 + search.num_levels * ranks // search.kept
