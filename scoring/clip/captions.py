"""Captions to tokens: any text at all, always the same tokens, and whether they were cut."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

CHARACTERS_PER_TOKEN = 32
"""A caption is cut to this many characters per token of the context before it is tokenized.

The time of byte-pair encoding grows with the square of a word's length, so that one caption could
hold up a shard. English needs 4 to 5 characters a token.
"""

CACHED_WORDS = 200_000
"""Words that open_clip's tokenizer may remember: it never forgets one by itself."""

PROBE_CAPTIONS = (
    "",
    "a photo of a red fire truck",
    "A PHOTO, of 3 cats & 2 dogs! #nofilter",
    "猫の写真 фото кошки صورة قطة 🐈",
    "word " * 300,
)
"""What tells two tokenizers apart."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenized captions."""

    ids: torch.Tensor
    """int64 (n, context_length)."""
    is_truncated: npt.NDArray[np.bool_]
    """Whether a caption was longer than the context: (n,)."""
    lengths: npt.NDArray[np.int64]
    """Tokens up to the padding: (n,)."""


class CaptionTokenizer:
    """The model's own tokenizer, made safe for any caption.

    Every caption is padded to the whole context, whatever stands beside it. Several threads may
    use it.
    """

    def __init__(self, tokenizer: Any, prompt_template: str) -> None:
        self._tokenizer = tokenizer
        self._prompt_template = prompt_template
        self.context_length = int(tokenizer.context_length)
        self.pad_id = _pad_id(tokenizer)
        self._lock = threading.Lock()

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Returns the tokens of each caption, in the prompt."""
        texts = [self._prompt(caption) for caption in captions]
        if not texts:
            ids = torch.zeros((0, self.context_length), dtype=torch.int64)
            return Tokens(ids, np.zeros(0, np.bool_), np.zeros(0, np.int64))
        with self._lock:
            ids = self._tokenizer(texts)
            is_truncated = self._find_truncated(texts, ids)
            self._forget()
        return Tokens(ids, is_truncated, self._lengths(ids))

    def _prompt(self, caption: str) -> str:
        text = caption.encode("utf-8", "replace").decode("utf-8")
        limit = CHARACTERS_PER_TOKEN * self.context_length
        if len(text) > limit:
            text = " ".join(text.split())[:limit]
        return self._prompt_template.replace("{caption}", text)

    def _lengths(self, ids: torch.Tensor) -> npt.NDArray[np.int64]:
        is_token = (ids != self.pad_id).numpy()
        from_end = is_token[:, ::-1].argmax(axis=1)
        lengths = np.where(is_token.any(axis=1), ids.shape[1] - from_end, 1)
        return lengths.astype(np.int64)

    def _find_truncated(self, texts: list[str], ids: torch.Tensor) -> npt.NDArray[np.bool_]:
        """Returns which captions lose a token, by counting the tokens before any are cut.

        A caption may hold tokens of the padding's id, so that what is left does not tell.
        """
        if not isinstance(self._tokenizer, SimpleTokenizer):
            return np.array(_whole_lengths(self._tokenizer, texts)) > self.context_length
        is_truncated = np.zeros(len(texts), np.bool_)
        is_full = ids[:, -1] != self.pad_id  # it ends with the mark of the end, which is not 0
        for row in is_full.nonzero().flatten().tolist():
            length = len(self._tokenizer.encode(texts[row])) + 2
            is_truncated[row] = length > self.context_length
        return is_truncated

    def _forget(self) -> None:
        if isinstance(self._tokenizer, SimpleTokenizer):
            cache = self._tokenizer.cache
            if len(cache) > CACHED_WORDS:
                special = {
                    word: word for word in ("<start_of_text>", "<end_of_text>") if word in cache
                }
                cache.clear()
                cache.update(special)


def _whole_lengths(tokenizer: HFTokenizer, texts: list[str]) -> list[int]:
    """Returns the tokens of each text before any are cut, those at its ends with them."""
    adds_its_own = tokenizer.tokenizer_mode == "clips"  # three: begin, end and class
    found = tokenizer.tokenizer(
        [tokenizer.clean_fn(text) for text in texts],
        add_special_tokens=not adds_its_own,
        verbose=False,
    )
    return [len(ids) + 3 * adds_its_own for ids in found.input_ids]


def _pad_id(tokenizer: Any) -> int:
    if isinstance(tokenizer, SimpleTokenizer):
        return 0
    pad_id = tokenizer.tokenizer.pad_token_id
    return 0 if pad_id is None else int(pad_id)


def pads_on_the_right(tokenizer: Any) -> bool:
    """Returns whether a caption's tokens stand first and its padding after them."""
    if isinstance(tokenizer, SimpleTokenizer):
        return True
    return (
        isinstance(tokenizer, HFTokenizer)
        and tokenizer.tokenizer_mode != "clips"
        and not tokenizer.strip_sep_token
        and tokenizer.tokenizer.padding_side == "right"
    )
