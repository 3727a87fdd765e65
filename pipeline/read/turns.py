"""Conversations as files have them: LLaVA's turns, or the messages of newer tools."""

import json
from typing import Any

from pipeline.read.values import NUL
from schemas.conversations import conversation_fault
from schemas.errors import RejectReason, SampleRejected
from schemas.records import ROLES, json_text
from schemas.tokens import IMAGE_TOKEN

FORMS = (("from", "value"), ("role", "content"))
"""Who speaks and what is said: of LLaVA (ShareGPT), and of OpenAI, trl and LLaMA-Factory."""
IMAGE_PARTS = ("image", "image_url")
IMAGE_FIELDS = ("image", "image_url", "path", "url", "file_name")
"""Where a part of a message says which image it is: transformers', OpenAI's and others' names."""
LEVEL_COLUMN = "similarity"
"""The published training files' level, from 0; a score of the same name is no whole number."""
HIGHEST_LEVEL = 127
Turn = tuple[str, str]
"""Who speaks, as the file says it, and the words."""


def conversation_text(turns: Any, num_images: int) -> tuple[str, str]:
    """Returns a conversation's turns as canonical JSON, and the first answer with words.

    Raises:
        SampleRejected: if they are no such turns, speak of other images than there are, or nothing
            can be learnt from them.
    """
    found = _turns(turns)
    asked = [words for who, words in found if ROLES[who] == "user"]
    spoken_of = sum(words.count(IMAGE_TOKEN) for words in asked)
    if spoken_of and not num_images:
        raise SampleRejected(
            RejectReason.MISSING_URL, "its conversations speak of an image, the row has none"
        )
    if spoken_of != num_images:
        raise SampleRejected(
            RejectReason.IMAGE_COUNT_MISMATCH,
            f"its user's turns hold {spoken_of} times {IMAGE_TOKEN}, the row has {num_images} "
            "images",
        )
    fault = conversation_fault([(ROLES[who], words) for who, words in found])
    if fault is not None:
        raise SampleRejected(RejectReason.UNTRAINABLE_CONVERSATION, fault)
    answers = (words for who, words in found if ROLES[who] == "assistant" and words.strip())
    text = json_text([{"from": who, "value": words} for who, words in found])
    return text, next(answers)


def images_of_parts(turns: Any) -> list[str]:
    """Returns where the images are that the parts of messages name, in their order.

    None may be named: the row has them then, beside its messages.

    Raises:
        SampleRejected: if some parts name their image and others do not.
    """
    messages = [turn.get("content") for turn in _turn_list(turns) if isinstance(turn, dict)]
    lists = [parts for parts in messages if isinstance(parts, list)]
    parts = [part for found in lists for part in found if isinstance(part, dict)]
    images = [_image_of(part) for part in parts if part.get("type") in IMAGE_PARTS]
    named = [image for image in images if image]
    if named and len(named) < len(images):
        raise SampleRejected(
            RejectReason.MISSING_URL,
            f"of {len(images)} images in its messages only {len(named)} say where they are",
        )
    return named


def _image_of(part: dict[str, Any]) -> str | None:
    """Returns where the image of a part is, which may stand in an object of its own."""
    for name in IMAGE_FIELDS:
        found = part.get(name)
        if isinstance(found, dict):
            found = next((found[n] for n in ("url", "path") if found.get(n)), None)
        if isinstance(found, str) and found.strip():
            return found.strip()
    return None


def given_level(value: dict[str, Any]) -> str | None:
    """Returns the level that a row of the published training files gives, from 1; None for none.

    Raises:
        SampleRejected: if it is a whole number that is none.
    """
    found = value.get(LEVEL_COLUMN)
    if not isinstance(found, int) or isinstance(found, bool):
        return None
    if not 0 <= found < HIGHEST_LEVEL:
        raise SampleRejected(
            RejectReason.MALFORMED_ROW,
            f"its {LEVEL_COLUMN} is {found}: a level counts from 0 to {HIGHEST_LEVEL - 1}",
        )
    return str(found + 1)


def sample_id(found: Any) -> str | None:
    """Returns what a row's `id` is as text; None for none."""
    is_name = isinstance(found, str | int) and not isinstance(found, bool) and found != ""
    return str(found).encode("utf-8", "replace").decode() if is_name else None


def _turns(turns: Any) -> list[Turn]:
    return [_turn(turn) for turn in _turn_list(turns)]


def _turn_list(turns: Any) -> list[Any]:
    """Returns the turns as the file has them, a list in JSON or as such."""
    if isinstance(turns, str):
        try:
            turns = json.loads(turns)
        except ValueError as error:
            raise SampleRejected(
                RejectReason.MALFORMED_ROW, "its conversations are not JSON"
            ) from error
    if not isinstance(turns, list) or not turns:
        raise SampleRejected(RejectReason.MALFORMED_ROW, "its conversations are no list of turns")
    return turns


def _turn(turn: Any) -> Turn:
    for who, said in FORMS:
        if isinstance(turn, dict) and isinstance(turn.get(who), str):
            if turn[who] not in ROLES:
                raise SampleRejected(
                    RejectReason.MALFORMED_ROW,
                    f"a turn of its conversations is from {_shown(turn[who])}, not one of "
                    f"{', '.join(ROLES)}",
                )
            words = turn.get(said)
            if isinstance(words, list) and said == "content":
                words = "".join(_words_of(part) for part in words)
            if isinstance(words, str):
                return turn[who], words.replace(NUL, "")
    raise SampleRejected(
        RejectReason.MALFORMED_ROW,
        "a turn of its conversations lacks from and value, or role and content",
    )


def _words_of(part: Any) -> str:
    """Returns what stands in the text for a part of a message."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in IMAGE_PARTS:
        return f"{IMAGE_TOKEN}\n"
    raise SampleRejected(
        RejectReason.MALFORMED_ROW,
        f"a part of a message is {_shown(kind or part)}, neither text nor image",
    )


def _shown(value: Any) -> str:
    return repr(str(value)[:80])
