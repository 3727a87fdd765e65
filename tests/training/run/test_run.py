import math

import pytest

from training.run.folder import differences
from training.run.run import _named, learning_rate_factor


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_what_decides_what_is_learnt_may_not_differ_and_the_rest_may() -> None:
    one = {"data": ["a"], "config": {"seed": 0, "data": {"workers": 0}, "parallel": {"x": 1}}}
    other = {"data": ["a"], "config": {"seed": 1, "data": {"workers": 2}, "parallel": {"x": 2}}}
    assert [str(found) for found in differences(one, other)] == ["seed was 0 and is now 1"]


def test_a_message_names_ten_samples_at_most() -> None:
    keys = [f"{number:032x}" for number in range(1234)]
    assert _named(keys[:10]) == ", ".join(keys[:10])
    assert _named(keys) == ", ".join(keys[:10]) + " and 1,224 more"
