"""The tokens of a text in which pictures stand: of the whole, or piece by piece.

The published code cuts a text at each `<image>` and tokenises every piece as a text of its own: a
tokenizer of SentencePiece then begins each with `▁`, where the whole text has one beginning. Its
BOS comes from the tokenizer, so that `▁` follows it, too.

Source: haotian-liu/LLaVA, `tokenizer_image_token`; `LlamaTokenizer.tokenize` of transformers 4,
whose `▁` comes before a piece that begins with a space as before any other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.tokens import IMAGE_TOKEN

SPACE_MARK = "▁"
"""What stands for a space in the words of SentencePiece."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """The tokens of a text."""

    token_ids: list[int]
    """A picture is one `<image>`."""
    offsets: Sequence[tuple[int, int]]
    """Of each token, first character and the one behind its last; both the same for none."""


def tokens_of(
    text: str, tokenizer: Any, *, by_piece: bool, add_special_tokens: bool = False
) -> TextTokens:
    """Returns the tokens of a text.

    Args:
        by_piece: as the published code does; BOS is then the tokenizer's affair alone, whether
            the text brings one or not.
        add_special_tokens: whether the tokenizer sets BOS before a whole text.
    """
    if by_piece:
        return _by_piece(text, tokenizer)
    found = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=tokenizer.is_fast
    )
    return TextTokens(list(found["input_ids"]), found.get("offset_mapping", ()))


def _by_piece(text: str, tokenizer: Any) -> TextTokens:
    bos: str = tokenizer.bos_token or ""
    start = len(bos) if bos and text.startswith(bos) else 0
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    token_ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for number, piece in enumerate(text[start:].split(IMAGE_TOKEN)):
        if number:
            token_ids.append(image_id)
            offsets.append((start, start + len(IMAGE_TOKEN)))
            start += len(IMAGE_TOKEN)
        lead = _lead(piece, tokenizer)
        found = tokenizer(lead + piece, return_offsets_mapping=True)
        ids, places = list(found["input_ids"]), found["offset_mapping"]
        first = 1 if number and ids[:1] == [tokenizer.bos_token_id] else 0
        token_ids += ids[first:]
        offsets += [
            (start + max(0, begin - len(lead)), start + max(0, end - len(lead)))
            for begin, end in places[first:]
        ]
        start += len(piece)
    return TextTokens(token_ids, offsets)


def _lead(piece: str, tokenizer: Any) -> str:
    """Returns the `▁` that a fast tokenizer leaves out, and a slow one sets, before a space."""
    return SPACE_MARK if piece[:1] in (" ", SPACE_MARK) and marks_beginnings(tokenizer) else ""


def marks_beginnings(tokenizer: Any) -> bool:
    """Returns whether the tokenizer sets `▁` before the beginning of a text."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    if splitter is None:
        return False
    settings = json.loads(splitter.__getstate__())
    return bool(settings.get("type") == "Metaspace" and settings["prepend_scheme"] != "never")
