import pytest

from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.metrics.choice import scienceqa_letter, vlmevalkit_letter


def test_a_letter_is_read_as_the_published_scripts_read_it() -> None:
    for row in golden("scienceqa")["rows"]:
        assert scienceqa_letter(row[4] if row[4] is not None else "FAILED") == row[5]
    for row in golden("mmbench")["rows"]:
        options = dict(zip("ABCD", row[3], strict=False))
        assert vlmevalkit_letter(row[7], options) == row[8]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B. a boat", "B"),
        ("B.a boat", "FAILED"),
        ("The answer is C.", "C"),
        ("The answer is C", "FAILED"),
        ("The answer is A. No, The answer is B.", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_scienceqa_takes_a_letter_alone_before_a_period_or_in_one_sentence(
    text: str, letter: str
) -> None:
    assert scienceqa_letter(text) == letter


def test_an_option_in_words_is_its_letter_unless_two_are_named() -> None:
    options = {"A": "lamp", "B": "boat"}
    assert vlmevalkit_letter("it is the boat", options) == "B"
    assert vlmevalkit_letter("a boat or a lamp", options) is None
