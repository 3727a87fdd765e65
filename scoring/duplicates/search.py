"""Finds images that are nearly the same: pairs of embeddings with a cosine above a threshold.

Comparing all with all costs n squared. Instead the embeddings are divided into k-means cells. Each
is at home in the nearest cell, and visits the cells across whose border a near-duplicate of it may
lie. Within a cell those at home are compared with each other and with the visitors. What is found
is joined into groups by connected components.

What is found does not depend on threads, on the order of the rows or on the arithmetic of the
processor: the k-means sample is chosen and ordered by what the embeddings are, and whatever lies
within the rounding error of a decision is computed again in double precision, one row at a time.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from schemas.arithmetic import fast_arithmetic
from scoring.devices import use_exact_arithmetic
from scoring.duplicates.cells import (
    MARGIN,
    PROBES,
    assign_cells,
    blocks,
    canonical_sample,
    cell_count,
    content_hashes,
    sample_size,
    train_cells,
)

ROUGH_MARGIN = 0.0065
"""`MARGIN` for products in bfloat16. Source: each factor is rounded by at most 2**-9 of itself, and
so is the result: 3 * 2**-9 = 0.0059 in all for unit vectors, by Cauchy and Schwarz."""
TILE_ROWS, TILE_COLUMNS = 1024, 2048
"""Cosines computed at once: 4 megabytes of bfloat16 stay in a core's cache."""
ROW_STEP, COLUMN_STEP = 128, 512
"""Tiles are multiples of these, so that few shapes occur: oneDNN prepares and keeps code for each,
about a megabyte. Source: benchmarks/duplicates.py; any shape took three times as long."""

UNIT_MARGIN = 1e-3
"""How far from 1 the length of an embedding may be; rounding to half precision moves it by less."""

Cell = TypeVar("Cell")


def near_duplicate_groups(
    embeddings: NDArray[np.float32],
    threshold: float,
    *,
    cells: int = 0,
    probes: int = PROBES,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 0,
) -> NDArray[np.int64]:
    """Returns the group of each embedding, (n,): the first row of its group.

    Two embeddings are of one group if a chain of pairs with a cosine of at least `threshold`
    leads from one to the other. A pair is missed where neither visits the home of the other. For
    embeddings that fit into memory; the pipeline searches the same cells from files.

    Args:
        embeddings: (n, d), of unit length.
        threshold: a cosine; above 1 every embedding is a group of its own.
        cells: number of k-means cells; 0 chooses it from n.
        probes: most cells that an embedding is searched in.
        device: cpu, cuda or cuda:N.
        threads: cells searched at once; 0 takes one for each core.

    Raises:
        ValueError: if the embeddings are not of that shape and length.
    """
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    _check(embeddings, cells, probes, threads)
    count = len(embeddings)
    if count < 2 or threshold > 1:
        return np.arange(count, dtype=np.int64)
    hashes = content_hashes(embeddings)
    sample = canonical_sample(embeddings, hashes, sample_size(cells or cell_count(count)))
    centroids = train_cells(sample, cells or cell_count(count), seed=seed, device=device)
    copies = _copies(embeddings, hashes)
    del sample, hashes
    homes = assign_cells(embeddings, centroids, threshold, probes, device)

    def search(cell: tuple[NDArray[np.int64], int]) -> NDArray[np.int64]:
        rows, residents = cell
        return rows[search_cell(embeddings[rows], residents, threshold, device=device)]

    found = search_all(search, _members(homes, len(centroids)), threads)
    return components(count, *np.concatenate([copies, found], axis=1))


def _check(embeddings: NDArray[np.float32], cells: int, probes: int, threads: int) -> None:
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be of shape (n, d), not {embeddings.shape}")
    if cells < 0 or probes < 1 or threads < 0:
        raise ValueError(
            f"cells and threads must be at least 0 and probes at least 1, "
            f"got {cells}, {threads} and {probes}"
        )
    for rows in blocks(len(embeddings), 1 << 14):
        length = np.linalg.norm(embeddings[rows], axis=1)
        wrong = np.flatnonzero(~(np.abs(length - 1) < UNIT_MARGIN))
        if len(wrong):
            raise ValueError(
                f"embeddings must be of unit length, but row {rows.start + wrong[0]} is of length "
                f"{length[wrong[0]]:g}"
            )


def _copies(embeddings: NDArray[np.float32], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Returns pairs that join the rows of equal numbers, (2, m): rounding can part them at 1."""
    order = np.argsort(hashes, kind="stable")
    places = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    left, right = order[places], order[places + 1]
    is_equal = np.empty(len(places), np.bool_)
    for rows in blocks(len(places), 1 << 13):
        is_equal[rows] = (embeddings[left[rows]] == embeddings[right[rows]]).all(axis=1)
    return np.stack([left[is_equal], right[is_equal]])


def search_all(
    search: Callable[[Cell], NDArray[np.int64]], cells: Iterable[Cell], threads: int = 0
) -> NDArray[np.int64]:
    """Returns the pairs of rows that a search finds in all cells, (2, m), in their order.

    Each core searches a cell of its own: the products are too small to be divided among cores.

    Args:
        threads: cells searched at once; 0 takes one for each core, however many threads a model in
            this process has left to torch.
    """
    threads_before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(
            threads or len(os.sched_getaffinity(0)),
            "search",
            initializer=torch.set_num_threads,
            initargs=(1,),
        ) as pool:
            return np.concatenate([np.empty((2, 0), np.int64), *pool.map(search, cells)], axis=1)
    finally:
        torch.set_num_threads(threads_before)


def search_cell(
    embeddings: NDArray[np.float32],
    residents: int,
    threshold: float,
    *,
    must_agree: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Returns pairs of rows, (2, m), that join all near-duplicates among the embeddings.

    Not every pair is listed, but enough of them to connect the same rows: fewer than n.

    Args:
        residents: how many of the first rows are at home in the cell; the others visit it and are
            not compared with each other.
        must_agree: (n,), numbers that must be equal in a pair.
    """
    count = len(embeddings)
    label = np.arange(count, dtype=np.int64)
    is_rough = device == "cpu" and threshold > 0.1 and _is_bfloat16_fast()
    margin = ROUGH_MARGIN if is_rough else MARGIN
    use_exact_arithmetic()
    vectors = torch.zeros(
        (-(-count // COLUMN_STEP) * COLUMN_STEP, embeddings.shape[1]),
        dtype=torch.bfloat16 if is_rough else torch.float32,
        device=device,
    )
    vectors[:count] = torch.from_numpy(np.ascontiguousarray(embeddings))
    order = np.arange(count)
    for rows, columns in _tiles(residents, len(vectors)):
        if rows.start == TILE_ROWS == columns.start:
            order = _large_groups_together(label, residents)
            vectors[:count] = vectors[torch.from_numpy(order).to(device)]
        if _is_one_group(label[order[rows]], label[order[columns]]):
            continue
        left, right, values = pairs_above(vectors[rows] @ vectors[columns].T, threshold - margin)
        left, right = left + rows.start, right + columns.start
        is_new = (left < right) & (left < residents) & (right < count)
        left, right, values = order[left[is_new]], order[right[is_new]], values[is_new]
        is_new = label[left] != label[right]
        left, right, values = left[is_new], right[is_new], values[is_new]
        if must_agree is not None:
            is_new = must_agree[left] == must_agree[right]
            left, right, values = left[is_new], right[is_new], values[is_new]
        is_near = values >= threshold + margin
        unsure = np.flatnonzero(~is_near)
        is_near[unsure] = exact_cosines(embeddings, left[unsure], right[unsure]) >= threshold
        if is_near.any():
            label = components(
                count,
                np.concatenate([np.arange(count), left[is_near]]),
                np.concatenate([label, right[is_near]]),
            )
    joined = np.flatnonzero(label != np.arange(count))
    return np.stack([label[joined], joined])


def _large_groups_together(label: NDArray[np.int64], residents: int) -> NDArray[np.int64]:
    """Returns the rows ordered so that groups which fill tiles do, those at home still first.

    The first tiles have met every row: a picture that is there thousands of times is one group by
    now, and tiles within it can be left out. The rows of the first tiles stay where they are.
    """
    count = len(label)
    is_small = np.bincount(label, minlength=count)[label] < TILE_COLUMNS
    order = np.arange(count)
    for rows in (slice(TILE_ROWS, residents), slice(residents, count)):
        order[rows] = rows.start + np.argsort(np.where(is_small, -1, label)[rows], kind="stable")
    return order


def _is_one_group(here: NDArray[np.int64], there: NDArray[np.int64]) -> bool:
    return len(there) > 0 and bool((here == here[0]).all() and (there == here[0]).all())


def _tiles(residents: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Yields the rows and columns of tiles that compare all residents with what stands after them.

    Args:
        count: of all rows, a multiple of `COLUMN_STEP`.
    """
    for top in range(0, residents, TILE_ROWS):
        bottom = top + -(-min(TILE_ROWS, residents - top) // ROW_STEP) * ROW_STEP
        for start in range(top, count, TILE_COLUMNS):
            yield slice(top, min(bottom, count)), slice(start, min(start + TILE_COLUMNS, count))


def exact_cosines(
    embeddings: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the products of pairs of rows in double precision, (m,); no threads, no BLAS."""
    cosines = np.empty(len(left), np.float64)
    for rows in blocks(len(left), 1 << 13):
        first = embeddings[left[rows]].astype(np.float64)
        cosines[rows] = (first * embeddings[right[rows]]).sum(axis=1)
    return cosines


def components(count: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the smallest member of each number's connected component, (count,).

    Args:
        left: (m,), one end of each edge.
        right: (m,), the other.
    """
    edges = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    _, labels = connected_components(edges, directed=False)
    _, smallest = np.unique(labels, return_index=True)
    first: NDArray[np.int64] = smallest[labels]
    return first


def _members(homes: NDArray[np.int32], cells: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Yields the rows of each cell with a pair in it, those at home first, and how many are."""
    taken = np.flatnonzero(homes.ravel() >= 0)
    keys = homes.ravel()[taken].astype(np.int64) * 2 + (taken % homes.shape[1] > 0)
    order = taken[np.argsort(keys, kind="stable")] // homes.shape[1]
    bounds = np.append(0, np.cumsum(np.bincount(keys, minlength=2 * cells)))
    for first, middle, last in zip(bounds[:-2:2], bounds[1:-1:2], bounds[2::2], strict=True):
        if middle > first and last - first > 1:
            yield order[first:last], int(middle - first)


def pairs_above(
    cosines: torch.Tensor, bound: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Returns the rows and columns of the numbers that are not below the bound, and them."""
    if cosines.device.type != "cpu":
        found = torch.nonzero(cosines >= bound)
        values = cosines[found[:, 0], found[:, 1]].float().cpu().numpy()
        return found[:, 0].cpu().numpy(), found[:, 1].cpu().numpy(), values
    if cosines.dtype == torch.bfloat16:
        # Positive numbers order as their bits do, and numpy compares integers fastest.
        bits = np.float32(bound).view(np.uint32) >> np.uint32(16)
        is_above = cosines.view(torch.int16).numpy().ravel() >= np.int16(bits)
    else:
        is_above = cosines.numpy().ravel() >= np.float32(bound)
    whole = len(is_above) // 8 * 8
    eights = np.flatnonzero(is_above[:whole].view(np.uint64))
    places = (eights[:, None] * 8 + np.arange(8)).ravel()
    places = np.append(places, np.arange(whole, len(is_above)))
    places = places[is_above[places]]
    values = cosines.reshape(-1)[torch.from_numpy(places)].float().numpy()
    return *np.divmod(places, cosines.shape[1]), values


@cache
def _is_bfloat16_fast() -> bool:
    """Returns whether this processor multiplies matrices of bfloat16 in hardware of its own."""
    return fast_arithmetic("cpu").precision == "bf16"
