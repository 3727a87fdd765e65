"""The `.json` member of a sample in our tars: every field of one type, whatever the sample.

Readers such as `datasets` take the types of a dataset from its first few samples, so that a field
must not be null in those and a list in the next.
"""

import json
from typing import Any

from schemas.records import STORED_COLUMNS, StoredSample, json_text

TEXTS = ("url", "expected_hash", "image_format", "sha256", "pixel_hash")
SIZES = ("width", "height", "original_width", "original_height")


def member_json(sample: StoredSample, more: dict[str, Any]) -> bytes:
    """Returns what is known of a sample as JSON.

    A text that is not there is empty, a size 0; `captions` is a list also of one; lists that may be
    empty, whose type nobody could tell then, are JSON in a text.

    Args:
        more: fields beside those of the record, of one type in a dataset.
    """
    values = {**{name: getattr(sample, name) for name in STORED_COLUMNS}, **more}
    values |= {name: values[name] or "" for name in TEXTS}
    values |= {name: values[name] or 0 for name in SIZES}
    values |= {name: values[name] or "[]" for name in ("conversations", "more_urls")}
    values["more_images"] = json_text(values["more_images"] or [])
    values["captions"] = json.loads(values["captions"] or "null") or [values["caption"]]
    return json.dumps(values, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")
