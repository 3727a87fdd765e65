"""Which option an answer chooses, as the published scripts of multiple choice read it."""

import re
from collections.abc import Mapping

SCIENCEQA_LETTERS = "ABCDE"
THE_ANSWER_IS = re.compile(r"The answer is ([A-Z]).")
"""The period is any character, as in the published script: at the end of the text none matches."""
PHRASE = re.compile(r"answer is ([A-Z])\b")
SEPARATORS = str.maketrans({mark: " " for mark in ".()[],:;!*#{}"})
LAST_WORDS = 4
NO_ANSWER = "Z"
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
FAILED = "FAILED"


def scienceqa_letter(text: str) -> str:
    """Returns the letter, or FAILED. Source: eval_science_qa.py of LLaVA and AlignGPT.

    A letter alone, one followed by a period, a space and more, or the only "The answer is X.".
    """
    if text in SCIENCEQA_LETTERS and len(text) == 1:
        return text
    if len(text) >= 3 and text[0] in SCIENCEQA_LETTERS and text[1:3] == ". ":
        return text[0]
    found = THE_ANSWER_IS.findall(text)
    return str(found[0]) if len(found) == 1 else FAILED


def vlmevalkit_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the option that VLMEvalKit infers without a judge; None if it cannot tell.

    Args:
        options: letter to the option's text.

    Source: matching_util.py of open-compass/VLMEvalKit.
    """
    return _named_letter(text, options) or _quoted_option(text, options)


def _named_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the only letter among the words, if it is among the last, or "answer is X"."""
    if any(refusal in text for refusal in REFUSALS):
        return NO_ANSWER
    words = text.translate(SEPARATORS).split()
    named = [letter for letter in options if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - LAST_WORDS:
        return named[0]
    if not named and NO_ANSWER in words:
        return NO_ANSWER
    said = {letter for letter in PHRASE.findall(text) if letter in options}
    return said.pop() if len(said) == 1 else None


def _quoted_option(text: str, options: Mapping[str, str]) -> str | None:
    """Returns the only option whose text is in the answer, unless the answer is long."""
    answer = text.lower()
    if len(answer) > 2 * sum(len(option) for option in options.values()):
        return None
    quoted = [letter for letter, option in options.items() if option.lower() in answer]
    return quoted[0] if len(quoted) == 1 else None
