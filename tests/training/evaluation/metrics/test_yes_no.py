import pytest

from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.metrics.yes_no import Confusion, mme_answer, pope_answer


def test_answers_are_read_as_the_published_scripts_read_them() -> None:
    for text, said in golden("pope")["text_to_yesno"]:
        assert pope_answer(text) == said, text
    for text, said, _ in golden("mme")["parse"]:
        assert mme_answer(text) == said, text


def test_the_measures_of_a_confusion_are_their_textbook_formulas() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "no")] * 9 + [("no", "yes")] * 3
    counts = Confusion.of(pairs)
    assert counts == Confusion(6, 2, 9, 3)
    assert counts.accuracy == pytest.approx(15 / 20)
    assert counts.precision == pytest.approx(6 / 8)
    assert counts.recall == pytest.approx(6 / 9)
    assert counts.f1 == pytest.approx(2 * (6 / 8) * (6 / 9) / (6 / 8 + 6 / 9))
    assert counts.yes_ratio == pytest.approx(8 / 20)
    assert Confusion.of([]).f1 == Confusion.of([]).accuracy == 0.0
