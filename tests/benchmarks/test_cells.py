"""A pair is found where one of the two visits the home of the other."""

import numpy as np

from benchmarks.cells import is_visited


def test_a_pair_is_found_by_either_of_the_two_and_not_by_a_cell_that_both_only_visit() -> None:
    homes = np.array([[1, 2, -1], [2, 3, -1], [4, 3, -1], [5, 3, -1]], np.int32)
    left, right = np.array([0, 1, 2, 3]), np.array([1, 0, 3, 3])
    assert is_visited(homes, left, right).tolist() == [True, True, False, True]
