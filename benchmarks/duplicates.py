"""Measures the search for near-duplicates beside exact brute force in the same run.

    python benchmarks/duplicates.py [--count 1000000]

The embeddings are a mixture: a common direction (CLIP's images lie in a cone), 20,000 topics, and
noise whose spectrum falls off, so that about a hundred of the 512 directions carry it. One in fifty
is a planted copy of another at a cosine of 0.955 to 1.

Recall is the share of planted copies that are in the group of their original. Precision is the
share of joined embeddings whose group is connected by pairs that reach the threshold in double
precision. Brute force is timed on 10,000 queries and scaled to all.
"""

import argparse
import resource
import time

import numpy as np
import torch
from numpy.typing import NDArray

from scoring.duplicates import components, near_duplicate_groups

WIDTH = 512
THRESHOLD = 0.95
TOPICS = 20_000
COPY_RATIO = 0.02
QUERIES = 10_000


def mixture(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns unit embeddings, (count, 512), and for each copy the row of its original.

    The copies are the last rows.
    """
    rng = np.random.default_rng(0)
    spectrum = (1 + np.arange(WIDTH, dtype=np.float32) / 40) ** -1.0
    rotation = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0].astype(np.float32)
    common = rng.standard_normal(WIDTH, dtype=np.float32) * 0.25
    topics = rng.standard_normal((TOPICS, WIDTH), dtype=np.float32) * spectrum
    copies = int(COPY_RATIO * count)
    embeddings = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, 50_000):
        block = embeddings[start : start + 50_000]
        noise = rng.standard_normal(block.shape, dtype=np.float32) * spectrum
        np.matmul(topics[rng.integers(0, TOPICS, len(block))] + 0.8 * noise, rotation, out=block)
        block += common
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    originals = rng.choice(count - copies, copies, replace=False)
    cosine = rng.uniform(0.955, 1.0, (copies, 1)).astype(np.float32)
    base = embeddings[originals]
    away = rng.standard_normal(base.shape, dtype=np.float32) * spectrum @ rotation
    away -= (away * base).sum(axis=1, keepdims=True) * base
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    embeddings[count - copies :] = cosine * base + np.sqrt(1 - cosine**2) * away
    return embeddings, originals.astype(np.int64)


def precision(embeddings: NDArray[np.float32], groups: NDArray[np.int64]) -> float:
    """Returns the share of joined embeddings whose group is connected by exact pairs."""
    sizes = np.bincount(groups, minlength=len(groups))
    joined = np.flatnonzero(sizes[groups] > 1)
    order = joined[np.argsort(groups[joined], kind="stable")]
    right = 0
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        vectors = embeddings[rows].astype(np.float64)
        left, other = np.nonzero(vectors @ vectors.T >= THRESHOLD)
        right += len(rows) * int((components(len(rows), left, other) == 0).all())
    return right / max(len(joined), 1)


def brute_force_seconds(embeddings: NDArray[np.float32]) -> float:
    """Returns the seconds that comparing all with all would take, from some queries."""
    vectors = torch.from_numpy(embeddings)
    started = time.perf_counter()
    for start in range(0, QUERIES, 100):
        torch.nonzero(vectors[start : start + 100] @ vectors.T >= THRESHOLD)
    return (time.perf_counter() - started) * len(embeddings) / QUERIES


def main() -> None:
    """Runs the search and prints what it found and took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    embeddings, originals = mixture(arguments.count)
    started = time.perf_counter()
    groups = near_duplicate_groups(embeddings, THRESHOLD, device=arguments.device)
    seconds = time.perf_counter() - started
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    recall = (groups[-len(originals) :] == groups[originals]).mean()
    print(f"{arguments.count:,} embeddings, {len(originals):,} planted copies")
    print(f"search      {seconds:9.1f} s, peak memory {peak_gb:.2f} GB with the embeddings")
    print(f"recall      {recall:9.4f}")
    print(f"precision   {precision(embeddings, groups):9.4f}")
    scaled = brute_force_seconds(embeddings)
    print(f"brute force {scaled:9.0f} s (scaled), {scaled / seconds:.0f} times as long")


if __name__ == "__main__":
    main()
