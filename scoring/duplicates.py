"""Finds images that are nearly the same: pairs of embeddings with a cosine above a threshold.

Comparing all with all costs n squared. Instead the embeddings are divided into k-means cells. Each
is at home in the nearest cell, and visits the cells across whose border a near-duplicate of it may
lie. Within a cell those at home are compared with each other and with the visitors. What is found
is joined into groups by connected components.

What is found does not depend on threads, on the order of the rows or on the arithmetic of the
processor: the k-means sample is chosen and ordered by what the embeddings are, and whatever lies
within the rounding error of a decision is computed again in double precision, one row at a time.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

SAMPLE_PER_CELL = 40
"""Embeddings that k-means is trained on, for each cell. Source: FAISS warns below 39."""
ITERATIONS = 6
PROBES = 8
"""Most cells that an embedding is searched in. Source: benchmarks/duplicates.py."""
REACH = 0.3
"""Share of the farthest that a near-duplicate can lie beyond a border at which it is still looked
for there. Source: benchmarks/duplicates.py; docs/deduplication.md has the trade-off."""
MARGIN = 1e-4
"""Float32 products this close to a decision are computed exactly. Far above the error of a product
of unit vectors, at most 512 * 2**-24 = 3e-5 for 512 numbers, in practice below 1e-6."""
ROUGH_MARGIN = 0.0065
"""The same for products in bfloat16. Source: each factor is rounded by at most 2**-9 of itself, and
so is the result: 3 * 2**-9 = 0.0059 in all for unit vectors, by Cauchy and Schwarz."""
TABLE_CELLS = 1 << 12
BLOCK_NUMBERS = 1 << 23
"""Cosines computed at once, 32 megabytes."""


def near_duplicate_groups(
    embeddings: NDArray[np.float32],
    threshold: float,
    *,
    cells: int = 0,
    probes: int = PROBES,
    seed: int = 0,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Returns the group of each embedding, (n,): the first row of its group.

    Two embeddings are of one group if a chain of pairs with a cosine of at least `threshold`
    leads from one to the other. A pair is missed where neither visits the home of the other.

    Args:
        embeddings: (n, d), of unit length.
        threshold: a cosine; above 1 every embedding is a group of its own.
        cells: number of k-means cells; 0 chooses it from n.
        probes: most cells that an embedding is searched in.
        device: cpu or cuda.
    """
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    count = len(embeddings)
    if count < 2 or threshold > 1:
        return np.arange(count, dtype=np.int64)
    hashes = content_hashes(embeddings)
    sample = canonical_sample(embeddings, hashes, sample_size(cells or cell_count(count)))
    centroids = train_cells(sample, cells or cell_count(count), seed=seed)
    homes = assign_cells(embeddings, centroids, threshold, probes)
    vectors = torch.from_numpy(embeddings)
    first: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    second: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for rows, residents in _members(homes, len(centroids)):
        if residents and len(rows) > 1:
            taken = vectors.index_select(0, torch.from_numpy(rows)).numpy()
            left, right = search_cell(taken, residents, threshold, device=device)
            first.append(rows[left])
            second.append(rows[right])
    return components(count, np.concatenate(first), np.concatenate(second))


def cell_count(count: int) -> int:
    """Returns a good number of cells for so many embeddings.

    Assigning costs count * cells products. Searching costs count * visits * count / cells, cells
    that are not equally large making it about twice that; with 3 to 4 visits, and products in
    bfloat16 some four times as fast, the sum is least a little above the square root of count.
    """
    return max(1, round(1.25 * count**0.5)) if count > 1000 else 1


def sample_size(cells: int) -> int:
    """Returns how many embeddings the cells are trained on."""
    return SAMPLE_PER_CELL * cells


def content_hashes(embeddings: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Returns 64 bits for each embedding that depend on its numbers alone, (n,)."""
    count, width = embeddings.shape
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(count, np.uint64)
    for rows in _blocks(count, 1 << 14):
        bits = embeddings[rows].view(np.uint32).astype(np.uint64)
        bits ^= bits >> np.uint64(13)
        bits *= odd
        mixed = bits.sum(axis=1, dtype=np.uint64)
        mixed ^= mixed >> np.uint64(32)
        hashes[rows] = mixed * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def canonical_sample(
    embeddings: NDArray[np.float32], hashes: NDArray[np.uint64], size: int
) -> NDArray[np.float32]:
    """Returns the embeddings of the smallest hashes, ordered by them: the same for any order."""
    if len(hashes) > size:
        rows = np.argpartition(hashes, size - 1)[:size]
        rows = rows[np.argsort(hashes[rows], kind="stable")]
    else:
        rows = np.argsort(hashes, kind="stable")
    return embeddings[rows]


def train_cells(sample: NDArray[np.float32], cells: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Returns the centres of the cells, of unit length, (cells or fewer, d).

    One thread: with several, sums may be added up in another order on another machine.
    """
    width = sample.shape[1]
    cells = max(1, min(cells, len(sample) // SAMPLE_PER_CELL))
    if cells == 1:
        return np.zeros((1, width), np.float32)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        clustering = faiss.Clustering(width, cells)
        clustering.niter, clustering.seed, clustering.spherical = ITERATIONS, seed + 1, True
        clustering.max_points_per_centroid = len(sample)
        clustering.min_points_per_centroid = 1
        clustering.train(np.ascontiguousarray(sample), faiss.IndexFlatIP(width))
        centroids = faiss.vector_to_array(clustering.centroids).reshape(cells, width)
    finally:
        faiss.omp_set_num_threads(threads)
    return np.ascontiguousarray(centroids, np.float32)


def assign_cells(
    embeddings: NDArray[np.float32],
    centroids: NDArray[np.float32],
    threshold: float,
    probes: int = PROBES,
) -> NDArray[np.int32]:
    """Returns the home of each embedding and then the cells that it visits, (n, probes or fewer).

    What is not needed is -1. A near-duplicate x' of x has |x - x'| <= sqrt(2 - 2 * threshold). If
    their homes have the centres c and c', one of the two is no farther from the plane between c
    and c' than half of that: were every cell so close visited, no pair could be missed. As the
    way to a near-duplicate rarely leads straight to the border, `REACH` of that is enough.

    Args:
        centroids: (cells, d), of unit length.
    """
    cells = len(centroids)
    probes = min(probes, cells)
    homes = np.zeros((len(embeddings), probes), np.int32)
    if cells == 1:
        return homes
    reach = REACH * max(0.0, (1 - threshold) / 2) ** 0.5
    wanted = min(probes + 2, cells)
    centres = torch.from_numpy(np.ascontiguousarray(centroids))
    # A table of all distances pays unless the cells are so many that it would not fit.
    table = np.empty((0, 0), np.float32)
    if cells <= TABLE_CELLS:
        table = torch.cdist(centres.double(), centres.double()).float().numpy()
    for rows in _blocks(len(embeddings), 1 << 13):
        products = torch.from_numpy(np.ascontiguousarray(embeddings[rows])) @ centres.T
        cosines, places = (part.numpy() for part in products.topk(wanted, dim=1))
        widths = table[places[:, :1], places] if len(table) else _widths(centroids, places)
        beyond = cosines[:, :1] - cosines - reach * widths
        homes[rows] = np.where(beyond[:, :probes] <= 0, places[:, :probes], -1)
        is_unsure = cosines[:, 0] - cosines[:, 1] < MARGIN
        is_unsure |= (np.abs(beyond[:, 1:]) < MARGIN).any(axis=1)
        if wanted > probes:
            is_tie = cosines[:, probes - 1] - cosines[:, probes] < MARGIN
            is_unsure |= is_tie & (beyond[:, probes - 1 : probes + 1].min(axis=1) < MARGIN)
        unsure = np.flatnonzero(is_unsure)
        homes[rows.start + unsure] = _homes_exactly(
            embeddings[rows][unsure], centroids, places[unsure], probes, reach
        )
    return homes


def search_cell(
    embeddings: NDArray[np.float32],
    residents: int,
    threshold: float,
    *,
    must_agree: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns pairs of rows, two of (m,), that join all near-duplicates among the embeddings.

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
    vectors = torch.from_numpy(np.ascontiguousarray(embeddings))
    vectors = vectors.to(device, torch.bfloat16 if is_rough else torch.float32)
    step = max(1, BLOCK_NUMBERS // max(count, 1))
    for start in range(0, residents, step):
        stop = min(start + step, residents)
        left, right, values = pairs_above(
            vectors[start:stop] @ vectors[start:].T, threshold - margin
        )
        is_new = (left < right) & (label[left + start] != label[right + start])
        left, right, values = left[is_new] + start, right[is_new] + start, values[is_new]
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
    return label[joined], joined


def exact_cosines(
    embeddings: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the products of pairs of rows in double precision, (m,); no threads, no BLAS."""
    cosines = np.empty(len(left), np.float64)
    for rows in _blocks(len(left), 1 << 13):
        first = embeddings[left[rows]].astype(np.float64)
        cosines[rows] = (first * embeddings[right[rows]]).sum(axis=1)
    return cosines


def components(count: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the smallest member of each number's connected component, (count,).

    Args:
        left, right: (m,), the ends of the edges.

    Source: Shiloach and Vishkin, An O(log n) parallel connectivity algorithm (1982): join roots,
    then shorten all paths.
    """
    parent = np.arange(count, dtype=np.int64)
    while len(left):
        left, right = parent[left], parent[right]
        is_open = left != right
        left, right = left[is_open], right[is_open]
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))
        while True:
            shorter = parent[parent]
            if np.array_equal(shorter, parent):
                break
            parent = shorter
    return parent


def _members(homes: NDArray[np.int32], cells: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Returns the rows of each cell, those at home first, and how many are at home."""
    taken = np.flatnonzero(homes.ravel() >= 0)
    keys = homes.ravel()[taken].astype(np.int64) * 2 + (taken % homes.shape[1] > 0)
    order = taken[np.argsort(keys, kind="stable")] // homes.shape[1]
    bounds = np.append(0, np.cumsum(np.bincount(keys, minlength=2 * cells)))
    for first, middle, last in zip(bounds[:-2:2], bounds[1:-1:2], bounds[2::2], strict=True):
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


def _widths(centroids: NDArray[np.floating], places: NDArray[np.int64]) -> NDArray[np.floating]:
    """Returns how far the centre of each first cell is from that of each, (m, k)."""
    between: NDArray[np.floating] = centroids[places[:, :1]] - centroids[places]
    return np.sqrt((between**2).sum(axis=2))


def _homes_exactly(
    embeddings: NDArray[np.float32],
    centroids: NDArray[np.float32],
    places: NDArray[np.int64],
    probes: int,
    reach: float,
) -> NDArray[np.int32]:
    """Returns what `assign_cells` does, in double precision; of ties the first cell is nearer."""
    candidates = np.sort(places, axis=1)
    homes = np.empty((len(places), probes), np.int32)
    for rows in _blocks(len(places), 1 << 10):
        vectors = embeddings[rows].astype(np.float64)[:, None]
        cosines = (vectors * centroids[candidates[rows]]).sum(axis=2)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :probes]
        cosines = np.take_along_axis(cosines, order, axis=1)
        nearest = np.take_along_axis(candidates[rows], order, axis=1)
        widths = _widths(centroids.astype(np.float64), nearest)
        beyond = cosines[:, :1] - cosines - reach * widths
        homes[rows] = np.where(beyond <= 0, nearest, -1)
    return homes


@cache
def _is_bfloat16_fast() -> bool:
    """Returns whether this processor multiplies matrices of bfloat16 in hardware of its own."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
