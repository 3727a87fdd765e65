from pathlib import Path

from tests.training.evaluation.benchmark_folders import golden, score


def test_vqav2_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("vqav2")["expected"]
    result = score("vqav2", tmp_path)
    assert result["score"] == result["overall"] == expected["submission"]["overall"]
    assert result["per_answer_type"] == expected["submission"]["perAnswerType"]
    assert result["per_question_type"] == expected["submission"]["perQuestionType"]
    assert result["missing"] == 2 and result["bad_lines"] == 1
