from pathlib import Path

import pytest

from tests.training.evaluation.benchmark_folders import TOLERANCE, golden, score
from training.evaluation.metrics.consensus import eval_ai_score
from training.evaluation.metrics.normalise import eval_ai


def test_vizwiz_equals_both_scripts(tmp_path: Path) -> None:
    expected = golden("vizwiz")["expected"]
    result = score("vizwiz", tmp_path)
    assert result["lmms_eval"] == pytest.approx(expected["lmms_eval_mean"], abs=TOLERANCE)
    assert result["score"] == pytest.approx(100 * expected["lmms_eval_mean"], abs=TOLERANCE)
    assert result["vqa_eval"]["overall"] == expected["vqaEval"]["overall"]
    assert result["vqa_eval"]["per_answer_type"] == expected["vqaEval"]["perAnswerType"]
    for row in golden("vizwiz")["rows"]:
        assert eval_ai(row[5]) == row[6]
        assert eval_ai_score(row[5], row[3]) == pytest.approx(row[7], abs=TOLERANCE)
