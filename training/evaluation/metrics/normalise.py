"""How the VQA evaluation codes make two spellings of an answer equal, faults included.

Three public codes share these rules: vqaEval.py of GT-Vision-Lab/VQA, and the answer processor of
MMF, which LLaVA's m4c_evaluator.py and lmms-eval copy. Each oddity below is theirs, and a score
that is to equal theirs needs it.
"""

import json
import re
from functools import cache
from importlib.resources import files

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Marks that are deleted or become spaces; apostrophe and colon are not among them."""
NUMBER_WORDS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD_OF_A_SENTENCE = re.compile(r"\.(?!\d)")
"""Their look-behind for a digit is mistyped and never fails, so "3." loses its period, too."""
MOST_PERIODS = 32
"""They pass re.UNICODE, which is 32, where the number of replacements stands."""


@cache
def contractions() -> dict[str, str]:
    """Returns the word that each word without its apostrophe is replaced by."""
    text = files("training.evaluation.metrics").joinpath("contractions.json").read_text("utf-8")
    return dict(json.loads(text)["pairs"])


def without_punctuation(text: str) -> str:
    """Returns the text with each mark deleted or replaced by a space.

    All of a mark's occurrences are deleted if any of them touches a space, or if the text has a
    comma within a number; else all become spaces. Both are decided by the original text.
    """
    has_number = COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        is_deleted = f"{mark} " in text or f" {mark}" in text or has_number
        cleaned = cleaned.replace(mark, "" if is_deleted else " ")
    return PERIOD_OF_A_SENTENCE.sub("", cleaned, count=MOST_PERIODS)


def with_digits(text: str) -> str:
    """Returns the lower-cased words, numbers as digits, without articles, contractions mended."""
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    table = contractions()
    return " ".join(table.get(word, word) for word in words if word not in ARTICLES)


def one_line(text: str) -> str:
    """Returns the text with line ends and tabs as spaces, stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_eval(text: str) -> str:
    """Returns an answer as vqaEval.py compares it."""
    return with_digits(without_punctuation(one_line(text)))


def eval_ai(text: str) -> str:
    """Returns an answer as the EvalAI processor of MMF writes it: what LLaVA submits and compares.

    Commas and question marks are deleted first, and possessives are split: "dog's" is "dog 's".
    """
    word = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return with_digits(without_punctuation(one_line(word.strip())))
