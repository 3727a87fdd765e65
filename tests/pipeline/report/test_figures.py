import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.contents import SCORE_CELLS, LevelContents
from pipeline.report.figures import round_ticks, score_figure, signal_figure
from pipeline.report.signal_controls import Histogram


def texts(figure: str, kind: str) -> list[str]:
    return re.findall(f'class="{kind}">([^<]*)</text>', figure)


def histogram(scores: list[float], counts: list[int]) -> np.ndarray:
    cells = np.zeros(SCORE_CELLS, np.int64)
    for score, count in zip(scores, counts, strict=True):
        cells[round((score + 1) / 2 * SCORE_CELLS)] = count
    return cells


def test_the_axes_of_the_histogram_have_titles_and_round_numbers():
    levels = [LevelContents(1), LevelContents(2)]
    levels[0].add(np.array([-0.227, 0.05]))
    levels[1].add(np.array([0.06, 0.619]))
    figure = str(score_figure(histogram([-0.227, 0.05, 0.619], [3, 1234, 1]), levels))
    assert texts(figure, "title") == ["pairs", "CLIP score"]
    assert texts(figure, "count") == ["level", "0", "200", "400", "600", "800", "1,000", "1,200"]
    scores = ["-0.20", "-0.10", "0.00", "0.10", "0.20", "0.30", "0.40", "0.50", "0.60"]
    assert texts(figure, "tick") == ["1", "2", *scores]


def test_a_single_score_still_has_a_histogram():
    figure = str(score_figure(histogram([0.2], [1]), []))
    assert texts(figure, "tick") == ["0.200", "0.201"]
    assert texts(figure, "count") == ["0", "1"]


def test_a_signal_of_any_size_has_its_histogram_before_that_of_exchanged_pairs():
    counts = np.zeros(80, np.int64)
    counts[[10, 70]] = 30
    levels = [LevelContents(1), LevelContents(2)]
    levels[0].add(np.array([-40.0, -12.0]))
    levels[1].add(np.array([-12.0, 90.0]))
    figure = str(signal_figure("<taste>", Histogram(-25.0, 60.0, counts, counts[::-1], levels)))
    assert texts(figure, "title") == ["pairs", "&lt;taste&gt;"]
    values = [str(value) for value in range(-20, 70, 10)]
    assert texts(figure, "tick") == ["1", "2", *values]
    assert figure.count('class="exchanged"') == 1
    assert "<taste>" not in figure
    alone = str(signal_figure("small", Histogram(1e-6, 3e-6, counts, None, [])))
    assert texts(alone, "tick")[0] == "0.0000010" and "exchanged" not in alone


def test_no_scores_make_no_histogram():
    assert score_figure(np.zeros(SCORE_CELLS, np.int64), []) is None


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9), st.integers(3, 12))
def test_ticks_are_few_multiples_of_a_round_step_that_fill_the_range(low, width, most):
    ticks = round_ticks(low, low + width, most)
    assert 1 <= len(ticks) <= most
    assert str(ticks.step).rstrip("0") in ("1", "2", "5")
    assert all(tick % ticks.step == 0 for tick in ticks)
    assert ticks[0] - ticks.step < low <= ticks[0]
    assert ticks[-1] <= low + width < ticks[-1] + ticks.step


@pytest.mark.parametrize(("highest", "expected"), [(3, 4), (32, 7), (1_234_567, 7)])
def test_counts_have_several_numbers(highest, expected):
    assert len(round_ticks(0, highest, 7)) == expected
