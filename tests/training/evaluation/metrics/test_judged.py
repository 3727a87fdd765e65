import pytest

from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.metrics.judged import (
    llavabench_pair,
    mmvet_score,
    relative_score,
    strict_pair,
    strict_score,
)


def test_replies_are_read_as_the_published_script_reads_them() -> None:
    for reply, pair in golden("llavabench")["parse_score"]:
        assert list(llavabench_pair(reply)) == pair, reply


@pytest.mark.parametrize(
    ("reply", "pair"),
    [("\n8, 7\nwhy", (8, 7)), ("8 7.5", (8, 7.5)), ("8", None), ("0 7", None), ("11 2", None)],
)
def test_a_strict_pair_is_two_numbers_from_one_to_ten(
    reply: str, pair: tuple[float, float] | None
) -> None:
    assert strict_pair(reply) == pair


@pytest.mark.parametrize(
    ("reply", "score", "strict"),
    [
        ("0.5 because", 0.5, 0.5),
        ("1.0", 1.0, 1.0),
        ("1.5", None, None),
        ("0.5, because", None, 0.5),
        ("well: 0.5", None, None),
        ("nan", None, None),
    ],
)
def test_a_score_is_between_nothing_and_one(
    reply: str, score: float | None, strict: float | None
) -> None:
    assert mmvet_score(reply) == score
    assert strict_score(reply) == strict


def test_the_relative_score_is_of_rounded_means() -> None:
    assert relative_score([(8, 4), (6, 3)]) == (50.0, 70.0, 35.0)
    assert relative_score([(0, 3)]) == (0.0, 0.0, 30.0)
