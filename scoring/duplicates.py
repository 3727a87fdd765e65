"""Finds images that are nearly the same: pairs of embeddings with a cosine above a threshold.

Comparing all with all costs n squared. Instead the embeddings are divided into k-means cells, each
embedding is put into its `probes` nearest cells (against pairs that straddle a border), and all
pairs within a cell are compared. What is found is joined into groups by connected components.

What is found does not depend on threads or on the order of the rows: the k-means sample is chosen
and ordered by what the embeddings are, near ties between cells and cosines close to the threshold
are computed again in double precision, one row at a time.
"""

from collections.abc import Iterator

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

SAMPLE_PER_CELL = 48
"""Embeddings that k-means is trained on, for each cell. Source: FAISS warns below 39."""
ITERATIONS = 8
MARGIN = 1e-4
"""Cosines this close to a decision are computed exactly. Far above the error of a float32 product
of unit vectors, at most 512 * 2**-24 = 3e-5 for 512 numbers, in practice below 1e-6."""
BLOCK_NUMBERS = 1 << 23
"""Cosines computed at once, 32 megabytes."""


def near_duplicate_groups(
    embeddings: NDArray[np.float32],
    threshold: float,
    *,
    cells: int = 0,
    probes: int = 2,
    seed: int = 0,
    device: str = "cpu",
) -> NDArray[np.int64]:
    """Returns the group of each embedding, (n,): the first row of its group.

    Two embeddings are of one group if a chain of pairs with a cosine of at least `threshold`
    leads from one to the other. A pair is missed where the two have no nearest cell in common.

    Args:
        embeddings: (n, d), of unit length.
        threshold: a cosine; above 1 every embedding is a group of its own.
        cells: number of k-means cells; 0 chooses it from n.
        probes: nearest cells that every embedding is put into.
        device: cpu or cuda.
    """
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    count = len(embeddings)
    if count < 2 or threshold > 1:
        return np.arange(count, dtype=np.int64)
    hashes = content_hashes(embeddings)
    sample = canonical_sample(embeddings, hashes, sample_size(cells or cell_count(count)))
    centroids = train_cells(sample, cells or cell_count(count), seed=seed)
    homes = assign_cells(embeddings, centroids, probes)
    order = np.argsort(homes.ravel(), kind="stable")
    starts = np.searchsorted(homes.ravel()[order], np.arange(len(centroids) + 1))
    first: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    second: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for cell in range(len(centroids)):
        rows = order[starts[cell] : starts[cell + 1]] // homes.shape[1]
        if len(rows) > 1:
            left, right = search_cell(embeddings[rows], threshold, device=device)
            first.append(rows[left])
            second.append(rows[right])
    return components(count, np.concatenate(first), np.concatenate(second))


def cell_count(count: int) -> int:
    """Returns a good number of cells for so many embeddings.

    Assigning costs count * cells products, searching about (2 * count)**2 / (2 * cells) with two
    probes: their sum is least at the square root of 2 * count. Cells are not equally large, which
    makes searching dearer; hence somewhat more.
    """
    return max(1, round(2 * count**0.5)) if count > 1000 else 1


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
    embeddings: NDArray[np.float32], centroids: NDArray[np.float32], probes: int
) -> NDArray[np.int32]:
    """Returns the nearest cells of each embedding, nearest first, (n, probes or fewer)."""
    cells = len(centroids)
    probes = min(probes, cells)
    homes = np.zeros((len(embeddings), probes), np.int32)
    if cells == 1:
        return homes
    wanted = min(probes + 2, cells)
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(centroids)
    for rows in _blocks(len(embeddings), 1 << 14):
        cosines, places = index.search(np.ascontiguousarray(embeddings[rows]), wanted)
        homes[rows] = places[:, :probes]
        unsure = np.flatnonzero((cosines[:, :-1] - cosines[:, 1:]).min(axis=1) < MARGIN)
        homes[rows.start + unsure] = _nearest_exactly(
            embeddings[rows][unsure], centroids, places[unsure], probes
        )
    return homes


def search_cell(
    embeddings: NDArray[np.float32],
    threshold: float,
    *,
    must_agree: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns pairs of rows, two of (m,), that join all near-duplicates among the embeddings.

    Not every pair is listed, but enough of them to connect the same rows: fewer than n.

    Args:
        must_agree: (n,), numbers that must be equal in a pair.
    """
    count = len(embeddings)
    label = np.arange(count, dtype=np.int64)
    vectors = torch.from_numpy(np.ascontiguousarray(embeddings)).to(device)
    step = max(1, BLOCK_NUMBERS // max(count, 1))
    for start in range(0, count, step):
        stop = min(start + step, count)
        cosines = vectors[start:stop] @ vectors[start:].T
        found = torch.nonzero(cosines >= threshold - MARGIN)
        found = found[found[:, 1] > found[:, 0]]
        values = cosines[found[:, 0], found[:, 1]].cpu().numpy()
        left, right = (found + start).cpu().numpy().T
        is_new = label[left] != label[right]
        if must_agree is not None:
            is_new &= must_agree[left] == must_agree[right]
        left, right, values = left[is_new], right[is_new], values[is_new]
        is_near = values >= threshold + MARGIN
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


def _nearest_exactly(
    embeddings: NDArray[np.float32],
    centroids: NDArray[np.float32],
    places: NDArray[np.int64],
    probes: int,
) -> NDArray[np.int32]:
    """Returns the nearest of the cells in `places` in double precision; ties go to the first."""
    candidates = np.sort(places, axis=1)
    nearest = np.empty((len(places), probes), np.int32)
    for rows in _blocks(len(places), 1 << 11):
        vectors = embeddings[rows].astype(np.float64)[:, None]
        cosines = (vectors * centroids[candidates[rows]]).sum(axis=2)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :probes]
        nearest[rows] = np.take_along_axis(candidates[rows], order, axis=1)
    return nearest


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
