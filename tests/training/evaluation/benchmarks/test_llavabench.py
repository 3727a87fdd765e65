from pathlib import Path

from tests.training.evaluation.benchmark_folders import golden, score
from training.evaluation.benchmarks import llavabench as llavabench_module
from training.evaluation.metrics.judged import llavabench_pair


def test_llavabench_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("llavabench")
    result = score("llavabench", tmp_path)
    for name, numbers in vectors["expected"].items():
        assert result[name] == numbers
    assert result["score"] == vectors["expected"]["all"][0]
    for reply, pair in vectors["parse_score"]:
        assert list(llavabench_pair(reply)) == pair, reply


def test_llavabench_asks_the_judge_what_the_official_script_asks() -> None:
    vectors = golden("llavabench")
    given = vectors["assembly_inputs"]
    questions = given["q"].split("/")
    for number, expected in enumerate(vectors["assembled_user_content"]):
        content = llavabench_module.assemble(
            given["captions"][number],
            questions[number],
            given["ref"][number],
            given["cand"][number],
            given["rule prompts"][number],
            given["role"],
        )
        assert content == expected
