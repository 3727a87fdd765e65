"""The boxes of a picture that are to be blurred, as a column of the input gives them."""

import dataclasses
import json
from typing import Any

from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair
from scoring.images.settings import Box

MOST_BOXES = 10_000


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
    if not isinstance(found, list) or len(found) > MOST_BOXES:
        raise _refused(column, found)
    return [_box(column, one) for one in found]


def _value(image: Pair, column: str) -> Any:
    found = (image.kept or {}).get(column)
    if not isinstance(found, str):
        return found
    try:
        return json.loads(found) if found.strip() else None
    except ValueError:
        return found


def _box(column: str | None, value: Any) -> Box:
    try:
        left, top, right, bottom = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise _refused(column, value) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise _refused(column, value)
    return left, top, right, bottom


def _refused(column: str | None, value: Any) -> SampleRejected:
    return SampleRejected(
        RejectReason.BAD_BOXES,
        f"{column} holds {str(value)[:80]!r}: boxes are [left, top, right, bottom] from 0 to 1",
    )
