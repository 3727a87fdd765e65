from tests.training.evaluation.benchmark_folders import golden
from training.evaluation.metrics.normalise import eval_ai, vqa_eval


def test_both_normalisers_equal_the_official_ones() -> None:
    for text, of_eval_ai, of_vqa_eval in golden("vqav2")["normalizer"]:
        assert (eval_ai(text), vqa_eval(text)) == (of_eval_ai, of_vqa_eval), text
