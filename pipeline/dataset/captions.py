"""Several captions for one picture: how they are stored, and which of them counts."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import RejectReason, SampleRejected
from schemas.records import json_text

MOST_CAPTIONS = 100
"""Captions that one picture may have: each is a text for the model to encode."""


def stored_captions(texts: Sequence[str]) -> tuple[str | None, str | None]:
    """Returns the first of some captions, and all as JSON where there are several.

    Empty ones and repetitions are left out, so that one caption is the same pair however often it
    is given.

    Raises:
        SampleRejected: if there are too many.
    """
    kept = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(kept) > MOST_CAPTIONS:
        raise SampleRejected(
            RejectReason.MALFORMED_ROW, f"it has {len(kept)} captions, more than {MOST_CAPTIONS}"
        )
    if len(kept) < 2:
        return (kept[0] if kept else None), None
    return kept[0], json_text(kept)


def caption_choices(rows: pa.Table) -> list[list[str]]:
    """Returns the captions that each pair may be scored by, from its `caption` and `captions`."""
    pairs = zip(rows["caption"].to_pylist(), rows["captions"].to_pylist(), strict=True)
    return [[one] if several is None else json.loads(several) for one, several in pairs]


def chosen_captions(rows: pa.Table, caption_index: Sequence[int]) -> list[str]:
    """Returns the caption of each pair that scored best.

    Args:
        rows: with `caption` and `captions`.
        caption_index: as scored, one for each row.
    """
    if rows["captions"].null_count == rows.num_rows:
        captions: list[str] = rows["caption"].to_pylist()
        return captions
    choices = caption_choices(rows)
    return [texts[index] for texts, index in zip(choices, caption_index, strict=True)]


def caption_hashes(captions: list[str]) -> NDArray[np.int64]:
    """Returns 64 bits for each caption, equal if they agree but for case and spaces, (n,)."""
    digests = b"".join(
        hashlib.blake2b(
            " ".join(caption.casefold().split()).encode("utf-8", "surrogatepass"), digest_size=8
        ).digest()
        for caption in captions
    )
    return np.frombuffer(digests, "<i8")
