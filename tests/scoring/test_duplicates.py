import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring import duplicate_cells
from scoring.duplicate_cells import (
    REACH,
    assign_cells,
    cell_count,
    nearest,
    nearest_cell,
    train_cells,
)
from scoring.duplicates import (
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
    groups = [{}, {}]
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


def test_copies_count_only_if_what_must_agree_does():
    vectors = unit(np.ones((4, 8)))
    left, right = search_cell(vectors, 4, 0.95, must_agree=np.array([1, 2, 1, 2]))
    assert components(4, left, right).tolist() == [0, 1, 0, 1]


def test_a_pair_exactly_at_the_threshold_counts():
    vectors = np.array([[1.0, 0.0], [0.5, 0.75**0.5]], np.float32)
    cosine = float(vectors[0].astype(np.float64) @ vectors[1])
    assert near_duplicate_groups(vectors, cosine).tolist() == [0, 0]
    assert near_duplicate_groups(vectors, np.nextafter(cosine, 2)).tolist() == [0, 1]


def nearest_cells(vectors, centroids):
    cosines = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    return cosines, np.argsort(-cosines, axis=1)


def test_each_embedding_is_at_home_in_its_nearest_cell():
    vectors = clustered(2000)
    centroids = train_cells(vectors, 30)
    homes = assign_cells(vectors, centroids, 0.95)
    assert homes[:, 0].tolist() == nearest_cells(vectors, centroids)[1][:, 0].tolist()
    assert (train_cells(vectors, 30) == centroids).all()


def test_an_embedding_visits_the_cells_whose_border_is_within_reach_and_no_others():
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    cosines, order = nearest_cells(vectors, centroids)
    homes = assign_cells(vectors, centroids, 0.9, probes=20)
    reach = REACH * 0.05**0.5
    for row in range(len(vectors)):
        home = order[row, 0]
        widths = np.linalg.norm(centroids[home].astype(np.float64) - centroids, axis=1)
        is_near = cosines[row, home] - cosines[row] <= reach * widths
        assert set(homes[row][homes[row] >= 0]) == set(np.flatnonzero(is_near))
    assert 1 < (homes >= 0).sum(axis=1).mean() < 10


def test_an_embedding_visits_no_more_cells_than_probes(monkeypatch):
    monkeypatch.setattr("scoring.duplicate_cells.REACH", 10.0)
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    homes = assign_cells(vectors, centroids, 0.5, probes=3)
    assert homes.tolist() == nearest_cells(vectors, centroids)[1][:, :3].tolist()


def test_cells_are_the_same_with_and_without_the_table_of_their_distances(monkeypatch):
    vectors = clustered(1000)
    centroids = train_cells(vectors, 20)
    with_table = assign_cells(vectors, centroids, 0.9)
    monkeypatch.setattr("scoring.duplicate_cells.TABLE_CELLS", 1)
    assert (assign_cells(vectors, centroids, 0.9) == with_table).all()


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
    monkeypatch.setattr("scoring.duplicates._is_bfloat16_fast", lambda: is_fast)
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
from tests.scoring.test_duplicates import clustered, with_copies
from scoring.duplicates import near_duplicate_groups
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


def test_one_thread_at_a_time_uses_the_resources_of_the_gpu(monkeypatch):
    inside = []

    def knn_gpu(resources, vectors, centroids, count, metric):
        inside.append(resources)
        time.sleep(0.02)
        assert len(inside) == 1
        inside.pop()
        return faiss.knn(vectors, centroids, count, metric=metric)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    vectors, centroids = clustered(50), clustered(10)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: nearest(vectors, centroids, 2, "cuda")[1], range(8)))
    expected = nearest(vectors, centroids, 2, "cpu")[1]
    assert all((places == expected).all() for places in found)
    duplicate_cells._gpu.cache_clear()


@pytest.mark.parametrize("threads", [0, 3])
def test_every_core_searches_a_cell_whatever_a_model_left_to_torch(monkeypatch, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4))
    together = threading.Barrier(threads or 4)

    def search(cell):
        together.wait(timeout=30)
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
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(found) == 1
    assert int(found.pop().split()[1]) < 6600


def test_cells_are_where_the_embeddings_are():
    vectors = clustered(3000, centres=30)
    centroids = train_cells(vectors, 30)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    at_random = vectors[np.random.default_rng(0).choice(3000, 30, replace=False)]
    gain = (vectors @ centroids.T).max(axis=1).mean() - (vectors @ at_random.T).max(axis=1).mean()
    assert gain > 0.1


def test_an_embedding_between_equal_centres_is_at_home_in_the_first():
    centroids = unit(np.eye(8))[[3, 1, 1, 2]]
    assert nearest_cell(unit(np.eye(8))[[1, 2]], centroids, "cpu").tolist() == [1, 3]
    assert nearest_cell(unit(np.ones((1, 8))), centroids, "cpu").tolist() == [0]


def test_an_image_that_stands_there_often_is_one_centre_and_its_cells_are_the_same_in_any_block(
    monkeypatch,
):
    vectors = clustered(1000)
    generator = np.random.default_rng(1)
    copies = np.repeat(vectors[:1], 1500, axis=0)
    copies[:300] += 0.02 * generator.standard_normal((300, 64)).astype(np.float32)
    vectors = unit(np.concatenate([vectors, copies]))
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    centroids = train_cells(vectors, 50)
    assert len(np.unique(centroids, axis=0)) == len(centroids) > 40
    at_once = assign_cells(vectors, centroids, 0.9)
    monkeypatch.setattr("scoring.duplicate_cells.BLOCK_ROWS", 1)
    assert (assign_cells(vectors, centroids, 0.9) == at_once).all()


def test_copies_of_one_image_alone_share_one_cell():
    assert len(train_cells(np.repeat(clustered(1), 500, axis=0), 10)) == 1


def test_fewer_embeddings_than_cells_share_one_cell():
    centroids = train_cells(clustered(10), 500)
    assert len(centroids) == 1
    assert assign_cells(clustered(10), centroids, 0.95).tolist() == [[0]] * 10


def test_more_embeddings_get_more_cells():
    assert cell_count(10) == 1
    assert cell_count(1_000_000) == 1000


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
