"""Single values of rows as texts: bytes are UTF-8, a number that is none is missing."""

import math
import re
from decimal import Decimal
from typing import Any

from schemas.errors import RejectReason, SampleRejected

DETAIL_CHARACTERS = 200
"""Of a value, in what is said of a rejected row."""


SURROGATE = re.compile("[\ud800-\udfff]")
"""No character: half of one in UTF-16, or a byte that was none."""

NUL = "\0"
"""Means nothing in a text; what is left of strings of fixed length, and of damage."""


def storable(text: str) -> str:
    """Returns a text as it is.

    Raises:
        SampleRejected: if it is not valid Unicode and so cannot be stored.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleRejected(
            RejectReason.MALFORMED_ROW, f"it is not valid UTF-8: {excerpt(text)}"
        ) from error
    return text


def excerpt(text: str) -> str:
    """Returns the beginning of a text in a form that can be stored and shown."""
    return repr(SURROGATE.sub("\ufffd", text[:DETAIL_CHARACTERS]))


def text_of(found: Any, what: str) -> str | None:
    """Returns what a value says as text: bytes are UTF-8, a number that is none is missing.

    Args:
        what: how a message names the value.

    Raises:
        SampleRejected: if it is no text and no number, or cannot be stored.
    """
    if found is None or (isinstance(found, float) and not math.isfinite(found)):
        return None
    if isinstance(found, bytes):
        try:
            return found.decode()
        except UnicodeDecodeError as error:
            raise SampleRejected(
                RejectReason.MALFORMED_ROW, f"{what} is not valid UTF-8: {excerpt(repr(found))}"
            ) from error
    if isinstance(found, bool) or not isinstance(found, str | int | float | Decimal):
        kind = type(found).__name__
        raise SampleRejected(RejectReason.MALFORMED_ROW, f"{what} is no text but of type {kind}")
    return storable(str(found))


def plain_text(value: Any) -> str:
    """Returns a value as text to look up or to show, whatever it is."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def decoded(value: Any) -> Any:
    """Returns a value whose bytes, at any depth, are texts."""
    if isinstance(value, bytes):
        return text_of(value, "a part of it")
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if isinstance(value, dict):
        return {name: decoded(item) for name, item in value.items()}
    return value
