from pathlib import Path

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import golden, score
from training.evaluation.benchmarks import mme as mme_module
from training.evaluation.catalogue import benchmark
from training.evaluation.metrics.yes_no import mme_answer
from training.evaluation.scoring import score_files


def test_mme_equals_the_official_tool(tmp_path: Path) -> None:
    vectors = golden("mme")
    result = score("mme", tmp_path)
    expected = vectors["expected"]
    assert result["score"] == result["perception"] == expected["perception"]
    assert result["cognition"] == expected["cognition"]
    assert result["tasks"] == expected["per_task"]
    for text, said, _ in vectors["parse"]:
        assert mme_answer(text + "\n" if text else "\n") == said, text
        assert mme_answer(text) == said, text


def test_mme_writes_the_lines_of_its_tool(tmp_path: Path) -> None:
    path = benchmark_folders.mme(tmp_path)
    first = score_files(benchmark("mme"), str(tmp_path), [path]).answers
    lines = {mme_module.tool_line(answer) for answer in first}
    assert golden("mme")["result_line_example"] in lines
