import pytest

from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.judging import JudgedBenchmark
from training.evaluation.questions import Answer, Question


def test_those_and_only_those_that_a_judge_scores_are_judged() -> None:
    judged = {name for name, one in benchmarks().items() if isinstance(one, JudgedBenchmark)}
    assert judged == {name for name, one in benchmarks().items() if one.is_judged}
    assert judged == {"llavabench", "mmvet"}


@pytest.mark.parametrize("name", ["llavabench", "mmvet"])
def test_a_score_is_of_the_runs_that_all_answers_have(name: str) -> None:
    chosen = benchmark(name)
    assert isinstance(chosen, JudgedBenchmark)
    question = Question(question_id=0, prompt="")
    answers = [Answer(question=question, text="", judged=[1] * runs) for runs in (3, 0, 2)]
    assert chosen.runs(answers) == 2
    assert chosen.runs(answers[1:2]) == 0
    assert not chosen.is_binary
