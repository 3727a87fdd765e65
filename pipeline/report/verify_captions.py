"""Whether what a row tells of a caption by a model agrees with what it is packed with."""

from collections.abc import Iterator
from typing import Any

TOLD = (
    *("original_caption", "original_score", "original_level"),
    *("model_caption", "model_score", "exchanged_score", "model_refused", "caption_model"),
)


def caption_faults(row: dict[str, Any], is_recaptioned: bool) -> Iterator[str]:
    """Yields what a row says of its captions that cannot be.

    Args:
        is_recaptioned: whether its table tells of captions by a model.
    """
    if not is_recaptioned:
        return
    is_taken = row["is_recaptioned"]
    if is_taken is None:
        known = [name for name in TOLD if row.get(name) is not None]
        if known:
            yield f"{known[0]} is of a caption by a model, which is_recaptioned does not know of"
        return
    whose = "model" if is_taken else "original"
    for name, there in (("caption", "caption"), ("score", "clip_score")):
        if row[f"{whose}_{name}"] != row[there]:
            yield f"its {there} is not its {whose}_{name}, which is_recaptioned says"
    before, after = row["original_score"], row["model_score"]
    if is_taken != (after is not None and before is not None and after > before):
        yield f"is_recaptioned is {is_taken}, its scores are {before} before, {after} by the model"
    if (after is None) != (row["model_refused"] is not None):
        yield f"its model_score is {after}, its model_refused {row['model_refused']!r}"
