import numpy as np

from scoring.levels.counts import CHUNK_ROWS
from scoring.levels.edges import (
    assign_levels,
)


def levels_by_sorting(score, key_hash, num_levels):
    order = np.lexsort((key_hash, score + np.float32(0)))
    levels = np.empty(len(score), np.int64)
    levels[order] = 1 + num_levels * np.arange(len(score)) // max(len(score), 1)
    return levels


def test_many_pairs_in_several_chunks_equal_a_sort():
    rng = np.random.default_rng(1)
    size = 3 * CHUNK_ROWS + 17
    score = np.round(rng.normal(0.27, 0.05, size), 4).astype(np.float32)
    key_hash = rng.permutation(size).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    found = assign_levels(score, key_hash, 8)
    assert (found == levels_by_sorting(score, key_hash, 8)).all()
