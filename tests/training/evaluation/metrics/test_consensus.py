import pytest

from tests.training.evaluation.benchmark_folders import TOLERANCE, golden
from training.evaluation.metrics.consensus import vqa_eval_score
from training.evaluation.metrics.normalise import eval_ai


def test_vqav2_scores_each_answer_as_the_official_script() -> None:
    for row in golden("vqav2")["rows"]:
        given, text, submitted, of_submitted, of_raw = row[3:]
        sent = eval_ai(text) if row[0] not in golden("vqav2")["missing_from_results"] else ""
        assert sent == submitted
        assert 100 * vqa_eval_score(submitted, given) == pytest.approx(of_submitted, abs=TOLERANCE)
        assert 100 * vqa_eval_score(text, given) == pytest.approx(of_raw, abs=TOLERANCE)
