"""The cells that embeddings are searched in: centres by k-means, a home and the cells to visit.

What comes out does not depend on the order of the rows, on threads, or on whether a CPU or a GPU
multiplied: the sample is chosen and ordered by what the embeddings are, sums are added up in that
order in double precision, and whatever lies within the rounding error of a decision is computed
again in double precision, one row at a time.
"""

import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from scoring.devices import use_exact_arithmetic

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
TABLE_CELLS = 1 << 12
BLOCK_ROWS = 1 << 13
"""Embeddings whose nearest cells are looked for at once on a CPU."""
GPU_PRODUCTS = 1 << 28
"""Products that a GPU holds at once, a gigabyte."""


def cell_count(count: int) -> int:
    """Returns a good number of cells for so many embeddings.

    Assigning costs count * cells products. Searching costs count * visits * count / cells, cells
    that are not equally large making it about twice that; with 4 to 5 visits, and products in
    bfloat16 some ten times as fast, the sum is least near the square root of count.
    """
    return max(1, round(count**0.5)) if count > 1000 else 1


def sample_size(cells: int) -> int:
    """Returns how many embeddings the cells are trained on."""
    return SAMPLE_PER_CELL * cells


def content_hashes(embeddings: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Returns 64 bits for each embedding that depend on its numbers alone, (n,)."""
    count, width = embeddings.shape
    rng = np.random.default_rng(0)
    odd = rng.integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.empty(count, np.uint64)
    for rows in blocks(count, 1 << 14):
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


def train_cells(
    sample: NDArray[np.float32], cells: int, *, seed: int = 0, device: str = "cpu"
) -> NDArray[np.float32]:
    """Returns the centres of the cells, of unit length, no two the same, (cells or fewer, d).

    Of more equal centres than are looked at, which ones a search returns would depend on the rows
    that it is asked with. An image that stands in the input often must not become such centres.

    Source: spherical k-means, Dhillon and Modha (2001); a centre that nothing is near stays.
    """
    count, width = sample.shape
    distinct = np.sort(np.unique(content_hashes(sample), return_index=True)[1])
    cells = max(1, min(cells, count // SAMPLE_PER_CELL, len(distinct)))
    if cells == 1:
        return np.zeros((1, width), np.float32)
    first = np.random.default_rng(seed).choice(len(distinct), cells, replace=False)
    centroids = np.ascontiguousarray(sample[distinct[np.sort(first)]])
    for _ in range(ITERATIONS):
        homes = nearest_cell(sample, centroids, device)
        order = np.argsort(homes, kind="stable")
        bounds = np.searchsorted(homes[order], np.arange(cells + 1))
        for cell in np.flatnonzero(np.diff(bounds)).tolist():
            members = sample[order[bounds[cell] : bounds[cell + 1]]]
            total = members.sum(axis=0, dtype=np.float64)
            length = (total**2).sum() ** 0.5
            if length > 0:
                centroids[cell] = total / length
    return centroids[np.sort(np.unique(centroids, axis=0, return_index=True)[1])]


def nearest_cell(
    embeddings: NDArray[np.float32], centroids: NDArray[np.float32], device: str
) -> NDArray[np.int64]:
    """Returns the cell whose centre is nearest to each embedding, (n,), of ties the first."""
    homes = np.empty(len(embeddings), np.int64)
    for rows in blocks(len(embeddings), _rows_at_once(device, len(centroids))):
        cosines, places = nearest(embeddings[rows], centroids, 2, device)
        homes[rows] = places[:, 0]
        for row in np.flatnonzero(cosines[:, 0] - cosines[:, 1] < MARGIN) + rows.start:
            exact = (embeddings[row].astype(np.float64) * centroids).sum(axis=1)
            homes[row] = exact.argmax()
    return homes


def nearest(
    vectors: NDArray[np.float32], centroids: NDArray[np.float32], count: int, device: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the largest products with the centroids, two of (n, count): the products, which.

    On a GPU by FAISS where it was built for one, else by torch.
    """
    inner = faiss.METRIC_INNER_PRODUCT
    vectors = np.ascontiguousarray(vectors)
    if device == "cpu":
        cosines, places = faiss.knn(vectors, centroids, count, metric=inner)
    elif faiss.get_num_gpus() > 0:
        with _gpu_lock:
            index = torch.device(device).index
            cosines, places = faiss.knn_gpu(
                _gpu(),
                vectors,
                centroids,
                count,
                metric=inner,
                device=-1 if index is None else index,
            )
    else:
        use_exact_arithmetic()
        products = torch.from_numpy(vectors).to(device) @ torch.from_numpy(centroids).to(device).T
        best = products.topk(count, dim=1)
        cosines, places = best.values.cpu().numpy(), best.indices.cpu().numpy()
    return cosines, places


def _rows_at_once(device: str, cells: int) -> int:
    return BLOCK_ROWS if device == "cpu" else max(1, GPU_PRODUCTS // cells)


_gpu_lock = threading.Lock()


@cache
def _gpu() -> Any:
    """Returns FAISS's memory and streams on the GPU, made once in a process; for one thread."""
    return faiss.StandardGpuResources()


def assign_cells(
    embeddings: NDArray[np.float32],
    centroids: NDArray[np.float32],
    threshold: float,
    probes: int = PROBES,
    device: str = "cpu",
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
    centroids = np.ascontiguousarray(centroids)
    # A table of all distances pays unless the cells are so many that it would not fit.
    table = np.empty((0, 0), np.float32)
    if cells <= TABLE_CELLS:
        centres = torch.from_numpy(centroids).double()
        table = torch.cdist(centres, centres).float().numpy()
    for rows in blocks(len(embeddings), _rows_at_once(device, len(centroids))):
        cosines, places = nearest(embeddings[rows], centroids, wanted, device)
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


def _widths(centroids: NDArray[np.floating], places: NDArray[np.int64]) -> NDArray[np.floating]:
    """Returns how far the centre of each first cell is from that of each, (m, k)."""
    between: NDArray[np.floating] = centroids[places[:, :1]] - centroids[places]
    widths: NDArray[np.floating] = np.sqrt((between**2).sum(axis=2))
    return widths


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
    for rows in blocks(len(places), 1 << 10):
        vectors = embeddings[rows].astype(np.float64)[:, None]
        cosines = (vectors * centroids[candidates[rows]]).sum(axis=2)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :probes]
        cosines = np.take_along_axis(cosines, order, axis=1)
        found = np.take_along_axis(candidates[rows], order, axis=1)
        widths = _widths(centroids.astype(np.float64), found)
        beyond = cosines[:, :1] - cosines - reach * widths
        homes[rows] = np.where(beyond <= 0, found, -1)
    return homes


def blocks(count: int, size: int) -> Iterator[slice]:
    """Yields the rows in parts of at most this size."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
