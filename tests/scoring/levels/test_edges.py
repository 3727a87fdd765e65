import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.levels.edges import (
    EdgeSearch,
    assign_levels,
    count_cells,
    levels_from_edges,
    merge_histograms,
    population_stability_index,
    refine,
)

SCORES = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, 0.25, 0.25000003, 1e-45, -1e-45, float("inf"), -float("inf")]),
    st.integers(-3, 3).map(lambda tenth: float(np.float32(tenth / 10))),
)


@st.composite
def pairs(draw, min_size=0):
    scores = draw(st.lists(SCORES, min_size=min_size, max_size=60))
    hashes = draw(
        st.lists(
            st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 70).map(lambda i: i << 20)),
            min_size=len(scores),
            max_size=len(scores),
            unique=True,
        )
    )
    return np.array(scores, np.float32), np.array(hashes, np.uint64)


def levels_by_sorting(score, key_hash, num_levels):
    order = np.lexsort((key_hash, score + np.float32(0)))
    levels = np.empty(len(score), np.int64)
    levels[order] = 1 + num_levels * np.arange(len(score)) // max(len(score), 1)
    return levels


def search_edges(parts, num_levels, top_fraction=1.0):
    search = EdgeSearch(num_levels, top_fraction)
    while not search.is_done:
        search = refine(search, merge_histograms(count_cells(search, *part) for part in parts))
    return search


@pytest.mark.slow
@settings(max_examples=150)
@given(pairs(), st.integers(1, 127))
def test_levels_equal_those_of_a_sort(data, num_levels):
    score, key_hash = data
    found = assign_levels(score, key_hash, num_levels)
    assert found.dtype == np.int8
    assert found.tolist() == levels_by_sorting(score, key_hash, num_levels).tolist()


@settings(max_examples=100)
@given(pairs(), st.integers(2, 127))
def test_levels_hold_equally_many_pairs(data, num_levels):
    levels = assign_levels(*data, num_levels)  # type: ignore[call-arg]
    counts = np.bincount(levels, minlength=num_levels + 1)[1:]
    assert counts.sum() == len(levels)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=60)
@given(pairs(min_size=1), st.integers(2, 20), st.randoms())
def test_levels_do_not_depend_on_the_order_of_the_pairs(data, num_levels, random):
    score, key_hash = data
    order = list(range(len(score)))
    random.shuffle(order)
    before = assign_levels(score, key_hash, num_levels)
    assert (
        assign_levels(score[order], key_hash[order], num_levels).tolist() == before[order].tolist()
    )


@settings(max_examples=60)
@given(pairs(min_size=2), st.integers(2, 20), st.data())
def test_edges_do_not_depend_on_how_the_pairs_are_divided(data, num_levels, draw):
    score, key_hash = data
    cut = draw.draw(st.integers(0, len(score)))
    parts = [(score[:cut], key_hash[:cut]), (score[cut:], key_hash[cut:])]
    whole = search_edges([data], num_levels)
    assert search_edges(parts, num_levels).edges == whole.edges
    assert search_edges(parts[::-1], num_levels).edges == whole.edges


@settings(max_examples=60)
@given(pairs(min_size=1), st.integers(2, 20))
def test_levels_never_fall_as_the_score_rises(data, num_levels):
    score, key_hash = data
    levels = assign_levels(score, key_hash, num_levels)
    order = np.lexsort((key_hash, score))
    assert (np.diff(levels[order].astype(int)) >= 0).all()


@settings(max_examples=60)
@given(pairs(min_size=1), st.floats(0.01, 1.0), st.integers(2, 20))
def test_the_top_fraction_is_the_best_scored_pairs_in_equal_levels(data, fraction, num_levels):
    score, key_hash = data
    search = search_edges([data], num_levels, fraction)
    levels = levels_from_edges(score, key_hash, search.edges)
    kept = len(score) if fraction == 1.0 else max(1, round(fraction * len(score)))
    best = np.lexsort((key_hash, score))[len(score) - kept :]
    assert search.kept == kept
    assert sorted(np.flatnonzero(levels)) == sorted(best)
    expected = levels_by_sorting(score[best], key_hash[best], num_levels)
    assert levels[best].tolist() == expected.tolist()


def test_equal_scores_are_told_apart_by_the_hash_alone():
    rng = np.random.default_rng(0)
    key_hash = rng.permutation(1000).astype(np.uint64) << np.uint64(3)
    levels = assign_levels(np.full(1000, 0.25, np.float32), key_hash, 8)
    assert np.bincount(levels)[1:].tolist() == [125] * 8
    assert levels[np.argmin(key_hash)] == 1
    assert levels[np.argmax(key_hash)] == 8


def test_identical_pairs_are_ranked_by_their_row():
    levels = assign_levels(np.full(10, 0.5, np.float32), np.full(10, 7, np.uint64), 4)
    assert levels.tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4]


def test_identical_pairs_beside_others_are_ranked_by_their_row():
    score = np.array([0.9, 0.5, 0.5, 0.1, 0.5, 0.5], np.float32)
    key_hash = np.array([1, 7, 7, 9, 7, 2], np.uint64)
    assert assign_levels(score, key_hash, 3).tolist() == [3, 2, 2, 1, 3, 1]


def test_fewer_pairs_than_levels_leave_levels_empty():
    levels = assign_levels(np.array([0.3, 0.1], np.float32), np.array([1, 2], np.uint64), 8)
    assert levels.tolist() == [5, 1]
    assert assign_levels(np.zeros(0, np.float32), np.zeros(0, np.uint64), 8).tolist() == []


def test_a_score_that_is_not_a_number_is_refused():
    score = np.array([0.1, np.nan, 0.2], np.float32)
    with pytest.raises(ValueError, match="1 NaN"):
        assign_levels(score, np.arange(3, dtype=np.uint64), 2)


def test_arguments_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        assign_levels(np.zeros(3, np.float32), np.zeros(2, np.uint64), 2)
    with pytest.raises(ValueError, match=r"1\.\.127"):
        assign_levels(np.zeros(3, np.float32), np.zeros(3, np.uint64), 128)


def test_old_edges_level_new_pairs_by_the_same_scores():
    rng = np.random.default_rng(2)
    score = rng.normal(0.27, 0.05, 5000).astype(np.float32)
    key_hash = rng.permutation(5000).astype(np.uint64)
    edges = search_edges([(score, key_hash)], 8).edges
    lowest = [
        score[levels_from_edges(score, key_hash, edges) == level].min() for level in range(2, 9)
    ]
    new = np.array([-5.0, *lowest, *(np.nextafter(low, np.float32(-9)) for low in lowest), 5.0])
    levels = levels_from_edges(new.astype(np.float32), np.full(16, 2**64 - 1, np.uint64), edges)
    assert levels.tolist() == [1, *range(2, 9), *range(1, 8), 8]


def test_drift_is_zero_for_equal_shares_and_grows_with_the_shift():
    even = np.full(8, 1000)
    assert population_stability_index(even, even) == 0.0
    slight = population_stability_index(even, even + np.arange(-4, 4) * 10)
    strong = population_stability_index(even, np.array([4000, 1000, 500, 500, 500, 500, 500, 0]))
    assert 0 < slight < 0.1 < 0.25 < strong < np.inf
