"""The boxes of a picture that are to be blurred, as a column of the input gives them."""

import dataclasses
import json
from decimal import Decimal
from typing import Any

from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair
from scoring.images.blur import Box

MOST_BOXES = 10_000

MOST_OUTSIDE = 0.5
"""How far a box may lie outside the picture on each side: what finds faces guesses the part of one
that the edge cuts off. What lies farther is no such guess, but pixels perhaps."""


def with_own_boxes(images: list[Pair], column: str | None) -> list[Pair]:
    """Returns the images of a pair, each with its own boxes: of several, there is a list for each.

    What cannot be taken apart stays as it is, for `boxes_of` to refuse.
    """
    if column is None or len(images) < 2:
        return images
    found = _value(images[0], column)
    lists = found if isinstance(found, list) and len(found) == len(images) else None
    if found is None:
        return images
    return [
        dataclasses.replace(
            image,
            kept={**(image.kept or {}), column: "not one each" if lists is None else lists[n]},
        )
        for n, image in enumerate(images)
    ]


def boxes_of(image: Pair, column: str | None) -> list[Box]:
    """Returns the boxes of an image; none where its row has none.

    Raises:
        SampleRejected: if they are no boxes: such a picture must not be kept as it is.
    """
    found = None if column is None else _value(image, column)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _refused(column, found)
    if len(found) > MOST_BOXES:
        detail = f"{column} holds {len(found):,} boxes: at most {MOST_BOXES:,} are blurred"
        raise SampleRejected(RejectReason.BAD_BOXES, detail)
    return [_box(column, one) for one in found]


def _value(image: Pair, column: str) -> Any:
    found = (image.kept or {}).get(column)
    if not isinstance(found, str):
        return found
    try:
        return json.loads(found) if found.strip() else None
    except (ValueError, RecursionError):
        return found


def _box(column: str | None, value: Any) -> Box:
    """Returns a box as far as it lies in the picture."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_share, value)):
        raise _refused(column, value)
    left, top, right, bottom = (min(max(float(number), 0.0), 1.0) for number in value)
    if not (left < right and top < bottom):
        raise _refused(column, value)
    return left, top, right, bottom


def _is_share(number: Any) -> bool:
    is_number = isinstance(number, int | float | Decimal) and not isinstance(number, bool)
    return is_number and -MOST_OUTSIDE <= number <= 1 + MOST_OUTSIDE


def _refused(column: str | None, value: Any) -> SampleRejected:
    return SampleRejected(
        RejectReason.BAD_BOXES,
        f"{column} holds {str(value)[:80]!r}: it must be a list of boxes, each [left, top, right, "
        "bottom] from 0 to 1 of the picture's width and height, with something between",
    )
