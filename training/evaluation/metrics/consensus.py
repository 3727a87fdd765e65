"""The score of an answer against those of ten people."""

from collections.abc import Sequence

from training.evaluation.metrics.normalise import eval_ai, one_line, vqa_eval

AGREEING = 3
"""As many others who say the same make an answer right."""


def soft_score(answer: str, answers: Sequence[str]) -> float:
    """Returns the mean over the annotators of min(1, matches among the others / 3), in [0, 1].

    Of ten, 0, 1, 2, 3 and 4 or more who say it give 0, 0.3, 0.6, 0.9 and 1.
    Source: vqaEval.py of GT-Vision-Lab/VQA; an annotator is left out by number, not by answer.
    """
    if not answers:
        return 0.0
    same = sum(given == answer for given in answers)
    of_them = same * min(1.0, max(same - 1, 0) / AGREEING)
    of_others = (len(answers) - same) * min(1.0, same / AGREEING)
    return (of_them + of_others) / len(answers)


def vqa_eval_score(text: str, answers: Sequence[str]) -> float:
    """Returns the score of vqaEval.py, in [0, 1].

    Both sides are normalised only where the annotators do not all say the same.
    """
    answer, given = one_line(text), [one_line(other) for other in answers]
    if len(set(given)) > 1:
        answer, given = vqa_eval(answer), [vqa_eval(other) for other in given]
    return soft_score(answer, given)


def eval_ai_score(text: str, answers: Sequence[str]) -> float:
    """Returns the score of m4c_evaluator.py and of lmms-eval, in [0, 1]: always normalised."""
    return soft_score(eval_ai(text), [eval_ai(other) for other in answers])
