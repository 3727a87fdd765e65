"""What of a model's words is a caption: the rules of captions that are read, and some more."""

import re
import unicodedata
from dataclasses import dataclass

from pipeline.dataset.captions import stored_captions

NUL = "\0"

REFUSAL = re.compile(
    r"\W*(i'?m|i am|we are|we're)?\s*(very |so )?(sorry|apologi[sz]e|unable to|not able to)\b"
    r"|\W*(i|we) (can ?not|can'?t|could ?n[o']t|do ?n[o']t|am not|was not|wo ?n[o']t)\b"
    r"|\W*(as an? (ai|artificial|language|large language|image|vision)\b)"
    r"|\W*(unfortunately,? (i|we)\b)",
    re.IGNORECASE,
)
"""How an answer begins that says no word of the picture."""

TIMES = {1: 4, 2: 3, 3: 3, 4: 3}
"""Words of a run to how often it may not stand one time after the other."""

NO_TEXT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for bytes that are no character."""


@dataclass(frozen=True, slots=True)
class JudgedCaption:
    """What a model wrote, as it is stored, and why it is none if it is none."""

    text: str | None
    refused: str | None


def judged(text: str, is_finished: bool) -> JudgedCaption:
    """Returns what a model wrote as a caption on one line, and whether it is one.

    Args:
        is_finished: whether it came to an end by itself.
    """
    line, _ = stored_captions([" ".join(text.replace(NUL, "").split())])
    if line is None:
        return JudgedCaption(None, "empty")
    shown = "".join(character for character in line if not _is_control(character))
    if shown != line or NO_TEXT in line or not any(map(str.isalnum, line)):
        return JudgedCaption(shown.strip() or None, "no_text")
    if not is_finished:
        return JudgedCaption(line, "unfinished")
    if REFUSAL.match(line):
        return JudgedCaption(line, "refusal")
    return JudgedCaption(line, "repeating" if _repeats(line) else None)


def _is_control(character: str) -> bool:
    """Returns whether a character is none that is seen: a control one, half a one, unassigned.

    Those that join others (in emoji and in many scripts) are seen by what they join.
    """
    kind = unicodedata.category(character)
    return kind in ("Cc", "Cs", "Co", "Cn") or (kind == "Cf" and character not in "\u200c\u200d")


def _repeats(line: str) -> bool:
    """Returns whether the same few words stand again and again, one time after the other."""
    words = re.findall(r"\w+", line.casefold())
    for size, times in TIMES.items():
        for start in range(len(words) - size * times + 1):
            if words[start : start + size] * times == words[start : start + size * times]:
                return True
    return False
