import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.duplicates.search import (
    components,
    near_duplicate_groups,
    pairs_above,
    search_all,
    search_cell,
)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, width=64, centres=30, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, width))
    return unit(middle[rng.integers(0, centres, count)] + 1.2 * rng.standard_normal((count, width)))


def with_copies(base, copies, noise, seed=1):
    rng = np.random.default_rng(seed)
    copied = base[:copies] + noise * rng.standard_normal((copies, base.shape[1])).astype(np.float32)
    return unit(np.concatenate([base, copied]))


def groups_by_brute_force(vectors, threshold):
    label = np.arange(len(vectors))
    exact = vectors.astype(np.float64)
    near = exact @ exact.T >= threshold
    while True:
        shorter = np.array([label[near[row]].min() for row in range(len(label))])
        if (shorter == label).all():
            return label
        label = shorter


def test_groups_in_one_cell_equal_those_of_brute_force():
    vectors = with_copies(clustered(300), 60, 0.02)
    found = near_duplicate_groups(vectors, 0.95)
    assert found.tolist() == groups_by_brute_force(vectors, 0.95).tolist()
    assert (found != np.arange(360)).sum() >= 60


@pytest.mark.slow
def test_planted_copies_are_found_across_many_cells_and_nothing_else_is():
    vectors = with_copies(clustered(5000), 500, 0.01)
    found = near_duplicate_groups(vectors, 0.95, cells=60)
    truth = groups_by_brute_force(vectors, 0.95)
    joined = np.flatnonzero(found != np.arange(5500))
    assert (truth[joined] == truth[found[joined]]).all()
    assert (found[5000:] == found[:500]).mean() >= 0.99


def test_groups_do_not_depend_on_the_order_of_the_rows():
    vectors = with_copies(clustered(3000), 300, 0.03)
    order = np.random.default_rng(5).permutation(len(vectors))
    plain = near_duplicate_groups(vectors, 0.9, cells=40)
    shuffled = near_duplicate_groups(vectors[order], 0.9, cells=40)
    groups: list[dict[int, set[int]]] = [{}, {}]
    for row, label in enumerate(plain):
        groups[0].setdefault(label, set()).add(row)
    for place, label in enumerate(shuffled):
        groups[1].setdefault(label, set()).add(int(order[place]))
    assert {frozenset(g) for g in groups[0].values()} == {frozenset(g) for g in groups[1].values()}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_handful_of_embeddings_works(count):
    vectors = np.repeat(unit(np.ones((1, 8))), count, axis=0).reshape(count, 8)
    assert near_duplicate_groups(vectors, 0.95, cells=16).tolist() == [0] * count


def test_a_threshold_above_one_finds_nothing():
    vectors = unit(np.ones((5, 8)))
    assert near_duplicate_groups(vectors, 1.5).tolist() == [0, 1, 2, 3, 4]


def test_many_copies_of_one_image_are_one_group():
    vectors = np.concatenate([clustered(500), np.repeat(unit(np.ones((1, 64))), 3000, axis=0)])
    found = near_duplicate_groups(vectors, 0.95, cells=20)
    assert (found[500:] == 500).all()


def tiles_multiplied(monkeypatch):
    """Returns the list that the shape of every product of the search goes to."""
    shapes = []

    def counted(cosines, bound):
        shapes.append(tuple(cosines.shape))
        return pairs_above(cosines, bound)

    monkeypatch.setattr("scoring.duplicates.search.pairs_above", counted)
    return shapes


@pytest.mark.slow
@pytest.mark.parametrize("at_home", [6000, 3500])
def test_a_large_group_is_not_compared_with_itself_again_and_again(monkeypatch, at_home):
    monkeypatch.setattr("scoring.duplicates.search.TILE_ROWS", 128)
    monkeypatch.setattr("scoring.duplicates.search.TILE_COLUMNS", 512)
    shapes = tiles_multiplied(monkeypatch)
    one = unit(np.ones((1, 64)))
    vectors = np.concatenate(
        [
            clustered(900),
            with_copies(clustered(100), 0, 0),
            unit(one + 0.01 * np.random.default_rng(2).standard_normal((4500, 64))),
            with_copies(clustered(400, seed=3), 100, 0.02),
        ]
    )
    vectors = vectors[np.random.default_rng(4).permutation(6000)]
    left, right = search_cell(vectors, at_home, 0.95)
    near = vectors.astype(np.float64) @ vectors.T.astype(np.float64) >= 0.95
    near[at_home:, at_home:] = False
    expected = components(6000, *np.nonzero(near))
    assert components(6000, left, right).tolist() == expected.tolist()
    distinct = list(range(at_home))
    assert np.bincount(expected).max() > 4000
    assert len(shapes) < 0.6 * sum(-(-(6144 - top) // 512) for top in distinct[::128])


def test_copies_are_one_group_also_where_rounding_parts_them():
    vectors = clustered(100)
    lengths = (vectors.astype(np.float64) ** 2).sum(axis=1)
    assert (lengths < 1).any()
    found = near_duplicate_groups(np.concatenate([vectors, vectors]), 1.0)
    assert found.tolist() == [*range(100), *range(100)]


@pytest.mark.parametrize(
    ("change", "settings", "complaint"),
    [
        (lambda v: v.ravel(), {}, r"shape \(n, d\), not \(400,\)"),
        (lambda v: 3 * v, {}, "row 0 is of length 3"),
        (lambda v: np.concatenate([v, 0 * v]), {}, "row 50 is of length 0"),
        (lambda v: np.concatenate([v, np.nan * v]), {}, "row 50 is of length nan"),
        (lambda v: v, {"probes": 0}, "probes at least 1"),
        (lambda v: v, {"cells": -1}, "cells and threads must be at least 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(change, settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        near_duplicate_groups(change(clustered(50, 8)), 0.95, **settings)


def test_copies_count_only_if_what_must_agree_does():
    vectors = unit(np.ones((4, 8)))
    left, right = search_cell(vectors, 4, 0.95, must_agree=np.array([1, 2, 1, 2]))
    assert components(4, left, right).tolist() == [0, 1, 0, 1]


def test_a_pair_exactly_at_the_threshold_counts():
    vectors = np.array([[1.0, 0.0], [0.5, 0.75**0.5]], np.float32)
    cosine = float(vectors[0].astype(np.float64) @ vectors[1])
    assert near_duplicate_groups(vectors, cosine).tolist() == [0, 0]
    assert near_duplicate_groups(vectors, np.nextafter(cosine, 2)).tolist() == [0, 1]


def test_visitors_are_compared_with_those_at_home_only():
    vectors = unit(np.ones((4, 8)))
    vectors[1:3] = unit(np.eye(8))[:2]
    vectors[2] = vectors[1]
    left, right = search_cell(vectors, 1, 0.95)
    assert list(zip(left, right, strict=True)) == [(0, 3)]


@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 0.95, 0.999])
def test_rough_arithmetic_finds_what_exact_does(monkeypatch, is_fast, threshold):
    vectors = with_copies(clustered(400), 200, 0.02)
    monkeypatch.setattr("scoring.duplicates.search._is_bfloat16_fast", lambda: is_fast)
    left, right = search_cell(vectors, len(vectors), threshold)
    found = components(len(vectors), left, right)
    assert found.tolist() == groups_by_brute_force(vectors, threshold).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 8), (7, 33)])
def test_numbers_above_a_bound_are_found_wherever_they_stand(dtype, shape):
    cosines = torch.rand(shape, generator=torch.Generator().manual_seed(3)).mul(2).sub(1).to(dtype)
    left, right, values = pairs_above(cosines, 0.5)
    expected = torch.nonzero(cosines.float() >= 0.5)
    assert np.stack([left, right], axis=1).tolist() == expected.tolist()
    assert values.tolist() == cosines.float()[expected[:, 0], expected[:, 1]].tolist()


GROUPS_IN_A_PROCESS = """
import hashlib, sys, numpy as np
from tests.scoring.duplicates.test_search import clustered, with_copies
from scoring.duplicates.search import near_duplicate_groups
vectors = with_copies(clustered(6000, 256, 200), 600, 0.01)
groups = near_duplicate_groups(vectors, 0.95, cells=80, threads=int(sys.argv[1]))
print(hashlib.sha256(groups.tobytes()).hexdigest(), len(np.unique(groups)))
"""


def test_no_product_of_the_search_is_rounded_to_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        search_cell(unit(np.ones((2, 8))), 2, 0.95)
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("threads", [0, 3])
def test_every_core_searches_a_cell_whatever_a_model_left_to_torch(monkeypatch, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    together = threading.Barrier(threads or 4)

    def search(cell):
        together.wait(timeout=120)
        return np.array([[cell], [cell + 1]])

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = search_all(search, range(12), threads)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert found.tolist() == [list(range(12)), list(range(1, 13))]


@pytest.mark.slow
def test_groups_do_not_depend_on_the_number_of_threads():
    found = {
        subprocess.run(
            [sys.executable, "-c", GROUPS_IN_A_PROCESS, threads],
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            cwd=Path(__file__).parents[3],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1
    assert int(found.pop().split()[1]) < 6600


@settings(max_examples=200)
@given(
    st.integers(1, 40).flatmap(
        lambda count: st.tuples(
            st.just(count),
            st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=60),
        )
    )
)
def test_components_are_those_of_a_search_through_the_graph(graph):
    count, edges = graph
    neighbours = {node: {node} for node in range(count)}
    for left, right in edges:
        neighbours[left].add(right)
        neighbours[right].add(left)
    expected = []
    for node in range(count):
        seen, waiting = {node}, [node]
        while waiting:
            more = neighbours[waiting.pop()] - seen
            seen |= more
            waiting.extend(more)
        expected.append(min(seen))
    ends = np.array(edges, np.int64).reshape(-1, 2)
    assert components(count, ends[:, 0], ends[:, 1]).tolist() == expected
