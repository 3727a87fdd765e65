import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.duplicates import (
    assign_cells,
    cell_count,
    components,
    near_duplicate_groups,
    search_cell,
    train_cells,
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
    left, right = search_cell(vectors, 0.95, must_agree=np.array([1, 2, 1, 2]))
    assert components(4, left, right).tolist() == [0, 1, 0, 1]


def test_a_pair_exactly_at_the_threshold_counts():
    vectors = np.array([[1.0, 0.0], [0.5, 0.75**0.5]], np.float32)
    cosine = float(vectors[0].astype(np.float64) @ vectors[1])
    assert near_duplicate_groups(vectors, cosine).tolist() == [0, 0]
    assert near_duplicate_groups(vectors, np.nextafter(cosine, 2)).tolist() == [0, 1]


def test_each_embedding_goes_to_its_nearest_cells():
    vectors = clustered(2000)
    centroids = train_cells(vectors, 30)
    homes = assign_cells(vectors, centroids, 2)
    cosines = vectors.astype(np.float64) @ centroids.T.astype(np.float64)
    assert homes.tolist() == np.argsort(-cosines, axis=1)[:, :2].tolist()
    assert (train_cells(vectors, 30) == centroids).all()


def test_fewer_embeddings_than_cells_share_one_cell():
    centroids = train_cells(clustered(10), 500)
    assert len(centroids) == 1
    assert assign_cells(clustered(10), centroids, 2).tolist() == [[0]] * 10


def test_more_embeddings_get_more_cells():
    assert cell_count(10) == 1
    assert cell_count(1_000_000) == 2000


@settings(max_examples=200, deadline=None)
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
