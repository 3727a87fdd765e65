from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.catalogue import benchmark
from training.evaluation.questions import Answer, Question
from training.evaluation.scoring import score_files


@pytest.mark.parametrize("runs", [1, 3])
def test_mmvet_equals_the_official_script(tmp_path: Path, runs: int) -> None:
    path = benchmark_folders.mmvet(tmp_path, runs)
    expected = golden("mmvet")["expected"][f"{runs}_runs"]
    result = score_files(benchmark("mmvet"), str(tmp_path), [path]).to_json()
    totals = {name: result[name] for name in ("total", "std", "runs")}
    assert {**result["capability"], **totals} == expected["capability"]
    assert {**result["integration"], **totals} == expected["integration"]
    assert result["score"] == expected["capability"]["total"]


def test_mmvet_asks_again_as_the_official_script_does() -> None:
    chosen: Any = benchmark("mmvet")
    vectors = golden("mmvet")
    given = vectors["query_inputs"]
    question = Question(question_id=0, prompt=given["question"], facts={"answer": given["answer"]})
    answer = Answer(question=question, text=given["prediction"])
    for replies, value, calls, temperatures, _ in vectors["judge"]:
        asked: list[Any] = []
        waiting = iter([*replies, "last"])

        def ask(request: Any, asked: list[Any] = asked, waiting: Any = waiting) -> str:
            asked.append(request)
            return str(next(waiting))

        found = chosen.judge(answer, given["prompt"], ask, "official")
        assert (found.value, len(asked)) == (value, calls)
        assert [request.temperature for request in asked] == temperatures
        contents = [request.messages[0]["content"] for request in asked]
        assert contents[0].endswith(vectors["query_tail_first_call"])
        assert all(content.endswith(vectors["query_tail_retry"]) for content in contents[1:])
