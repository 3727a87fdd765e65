"""What a judge's reply says, as the published scripts read it, and stricter."""

import re
from collections.abc import Sequence

import numpy as np

UNPARSED_PAIR = (-1.0, -1.0)
PAIR = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*[,/\s]\s*(\d+(?:\.\d+)?)[\s.]*$")
TENTH = re.compile(r"^\s*(0?\.\d+|[01](?:\.\d+)?)(?![\d.])")


def llavabench_pair(reply: str) -> tuple[float, float]:
    """Returns the scores of reference and candidate, (-1, -1) where none are read.

    Source: parse_score in eval_gpt_review_bench.py of LLaVA: the first line, commas as spaces,
    must be two numbers with one space between; "8, 7" is none.
    """
    words = reply.split("\n", 1)[0].replace(",", " ").split(" ")
    if len(words) != 2:
        return UNPARSED_PAIR
    try:
        return float(words[0]), float(words[1])
    except ValueError:
        return UNPARSED_PAIR


def strict_pair(reply: str) -> tuple[float, float] | None:
    """Returns two numbers from 1 to 10 in the first line that is not empty, or None. Ours."""
    line = next((line for line in reply.splitlines() if line.strip()), "")
    found = PAIR.match(line)
    pair = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    return pair if all(1 <= score <= 10 for score in pair) else None


def mmvet_score(reply: str) -> float | None:
    """Returns the score before the first space, in [0, 1], or None.

    Source: mm-vet_evaluator.py of yuweihao/MM-Vet.
    """
    try:
        score = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return score if 0.0 <= score <= 1.0 else None


def strict_score(reply: str) -> float | None:
    """Returns the number that the reply begins with, in [0, 1], or None. Ours."""
    found = TENTH.match(reply)
    score = float(found[1]) if found else -1.0
    return score if 0.0 <= score <= 1.0 else None


def relative_score(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Returns candidate / reference x 100, and both means x 10, as the script rounds them.

    Source: summarize_gpt_review.py of LLaVA: the means are rounded to three decimals first, and
    pairs that were not read, (-1, -1), stay in them.
    """
    reference, candidate = (round(float(mean), 3) for mean in np.mean(pairs, axis=0))
    share = round(100 * candidate / reference, 1) if reference else 0.0
    return share, round(10 * reference, 1), round(10 * candidate, 1)
