import numpy as np
import pytest

from training.evaluation.tally import divided, draw, mean_tally, quantiles, tally_of


def test_a_mean_is_of_answers_and_its_units_are_pictures() -> None:
    tally = mean_tally(["a", "b", "a", "c"], [1.0, 0.0, 1.0, 1.0])
    assert tally.units == ("a", "b", "c")
    assert tally.sums.tolist() == [[2.0, 2.0], [0.0, 1.0], [1.0, 1.0]]
    assert tally.score() == 75.0
    low, high = tally.interval()
    assert low < 75.0 < high <= 100.0
    assert mean_tally([], []).score() == 0.0
    assert mean_tally([], []).interval() == (0.0, 0.0)


def test_rows_of_one_unit_are_added_whatever_their_order() -> None:
    one = tally_of(["x", "y", "x"], [(1, 2), (3, 4), (5, 6)], lambda sums: sums[..., 0])
    assert dict(zip(one.units, one.sums.tolist(), strict=True)) == {"x": [6, 8], "y": [3, 4]}
    assert one.score() == 9.0


def test_the_bootstrap_draws_as_many_units_as_there_are_and_has_the_known_spread() -> None:
    sums = np.column_stack([np.repeat([0.0, 1.0], 200), np.ones(400)])
    drawn = draw(sums)
    assert (drawn[:, 1] == 400).all()
    means = drawn[:, 0] / drawn[:, 1]
    assert means.mean() == pytest.approx(0.5, abs=0.003)
    assert means.std() == pytest.approx(0.025, rel=0.1)  # sqrt(p (1 - p) / n)
    assert quantiles(means) == pytest.approx((0.451, 0.549), abs=0.006)


def test_nothing_of_nothing_is_zero() -> None:
    assert divided(np.array([1.0, 0.0]), np.array([2.0, 0.0])).tolist() == [0.5, 0.0]
