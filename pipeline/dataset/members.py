"""The `.json` member of a sample in our tars: every field of one type, whatever the sample.

Readers such as `datasets` take the types of a dataset from its first few samples, so that a field
must not be null in those and a list in the next.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa

from schemas.records import StoredSample, json_text

TEXTS = ("url", "expected_hash", "image_format", "sha256", "pixel_hash")
SIZES = ("width", "height", "original_width", "original_height")

ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str)


@functools.cache
def _field_names(record: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


def member_json(sample: StoredSample, more: dict[str, Any], kept: Sequence[pa.Field] = ()) -> bytes:
    """Returns what is known of a sample as JSON.

    A text that is not there is empty, a size 0; `captions` is a list also of one; lists that may be
    empty, whose type nobody could tell then, are JSON in a text. Columns of the input's own stand
    beside ours as they are; what has no form of its own in JSON, such as a date, is a text.

    Args:
        more: fields beside those of the record, of one type in a dataset.
        kept: columns of the input's own. Of these a text that is not there is empty, too; a number
            is null, for there is none that means nothing.
    """
    # Not `asdict`, which copies what lies in the lists, one after another.
    values = {name: getattr(sample, name) for name in _field_names(cast(Any, type(sample)))}
    values |= more
    values.pop("thumbnail", None)
    own = values.pop("kept") or {}
    values |= {name: values[name] or "" for name in TEXTS}
    values |= {name: values[name] or 0 for name in SIZES}
    values |= {name: values[name] or "[]" for name in ("conversations", "more_urls")}
    values["more_images"] = json_text(values["more_images"]) if values["more_images"] else "[]"
    captions = json.loads(values["captions"]) if values["captions"] else None
    values["captions"] = captions or [values["caption"]]
    values |= {field.name: _member_value(own.get(field.name), field.type) for field in kept}
    return ENCODER.encode(values).encode("utf-8", "replace")


def _member_value(value: Any, kind: pa.DataType) -> Any:
    return "" if value is None and pa.types.is_string(kind) else _finite(value)


def _finite(value: Any) -> Any:
    """Returns a value without numbers that JSON has no form for: they are null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value
