from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.evaluation.catalogue import benchmark
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.report import EXAMPLES, mean_weights, plot_weights, section, spread


def answered(number: int, score: float | None, text: str = "yes", **row: Any) -> Answer:
    question = Question(question_id=number, prompt="Is it?", facts={"label": "yes"})
    return Answer(question=question, text=text, score=score, row=row)


def test_a_section_shows_right_and_wrong_answers_and_the_numbers() -> None:
    answers = [answered(number, float(number % 2)) for number in range(20)]
    answers.append(answered(20, None))
    shown = section(
        benchmark("pope"), answers, {"mean_f1": 0.123456, "asked": 1234, "x": []}, ["n"]
    )
    assert len(shown.right) == len(shown.wrong) == EXAMPLES
    assert shown.numbers == {"mean f1": "0.1235", "asked": "1,234"}
    assert (shown.right[0].expected, shown.right[0].picture) == ("yes", "")


def test_examples_come_from_all_over_a_benchmark() -> None:
    answers = [answered(number, 1.0) for number in range(40)]
    assert [answer.question.question_id for answer in spread(answers)] == [0, 10, 20, 30]


def test_a_picture_is_shown_small_and_one_that_is_gone_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (900, 600)).save(path)
    for name, begins in ((str(path), "data:image/jpeg;base64,"), ("gone.png", "")):
        picture = Picture(name="a", path=name)
        answer = answered(1, 1.0)
        answer.question = Question(question_id=1, prompt="", picture=picture)
        [example] = section(benchmark("pope"), [answer], {}, []).right
        assert example.picture.startswith(begins) and bool(example.picture) == bool(begins)


def test_the_gates_weights_are_averaged_and_drawn_with_their_values() -> None:
    rows = [answered(n, 1.0, gate_weights=w) for n, w in enumerate(([0.2, 0.8], [0.4, 0.6]))]
    mean = mean_weights([*rows, answered(9, 1.0)])
    assert mean is not None
    np.testing.assert_allclose(mean, [0.3, 0.7])
    assert mean_weights([answered(9, 1.0)]) is None
    drawn = plot_weights({"POPE": mean})
    assert drawn.startswith("<svg") and plot_weights({"POPE": mean}) == drawn
