"""Rows of tokens cut and padded to one length, as transformers' processors are asked to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from schemas.errors import ConfigError
from training.model.inputs import SampleTokens

Padding = Literal["longest", "max_length", "do_not_pad"]
UNKNOWN_LENGTH = 10**6
"""A tokenizer that knows no longest length says more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSettings:
    """What is asked for, under the names that transformers has for it."""

    padding: bool | Padding | None = None
    """True, longest or None: to the longest row; max_length: to it; False or do_not_pad: not."""
    truncation: bool | str | None = None
    """Whether rows longer than max_length lose what stands behind it."""
    max_length: int | None = None
    """Tokens of a row, a picture's among them; by default the tokenizer's longest."""
    pad_to_multiple_of: int | None = None
    """Of which the padded length is a multiple."""
    padding_side: str | None = None
    """left or right; the tokenizer's own by default."""

    def rows(
        self, rows: Sequence[SampleTokens], tokenizer: Any, image_token_id: int, *, is_tensor: bool
    ) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` and `prompt_mask`, lists of one length each.

        Args:
            is_tensor: whether they are to become tensors, so that all must be of one length.

        Raises:
            ConfigError: if a picture would be cut, or rows of several lengths are no tensor.
        """
        if self.truncation not in (None, False, "do_not_truncate"):
            end = self._longest(tokenizer, "truncation")
            rows = [_cut(row, end, image_token_id) for row in rows]
        lengths = self._lengths([len(row.input_ids) for row in rows], tokenizer)
        if is_tensor and len(set(lengths)) > 1:
            raise ConfigError(
                f"without padding the texts are {sorted(set(lengths))} tokens long, which is no "
                "tensor: pass padding=True, or return_tensors=None"
            )
        on_left = (self.padding_side or tokenizer.padding_side) == "left"

        def padded(values: list[Any], filler: Any, length: int) -> list[Any]:
            fillers = [filler] * (length - len(values))
            return fillers + values if on_left else values + fillers

        pairs = list(zip(rows, lengths, strict=True))
        return {
            "input_ids": [padded(row.input_ids, tokenizer.pad_token_id, n) for row, n in pairs],
            "attention_mask": [padded([1] * len(row.input_ids), 0, n) for row, n in pairs],
            "prompt_mask": [padded(row.prompt_mask, False, n) for row, n in pairs],
        }

    def _lengths(self, own: list[int], tokenizer: Any) -> list[int]:
        """Returns what each row is padded to, from its own length."""
        padding = self.padding
        if padding is False or padding == "do_not_pad":
            return own
        if padding is None or padding is True:
            padding = "longest"
        if padding not in get_args(Padding):
            raise ConfigError(
                f"padding must be True, False or one of {', '.join(get_args(Padding))}, "
                f"got {self.padding!r}"
            )
        length = max(own)
        if padding == "max_length":
            length = max(length, self._longest(tokenizer, "padding"))
        unit = self.pad_to_multiple_of or 1
        return [-(-length // unit) * unit] * len(own)

    def _longest(self, tokenizer: Any, asked_by: str) -> int:
        length = self.max_length or int(tokenizer.model_max_length)
        if length > UNKNOWN_LENGTH:
            raise ConfigError(
                f"{asked_by} to max_length needs one: pass max_length, as the tokenizer names no "
                "longest text"
            )
        return length


def _cut(row: SampleTokens, end: int, image_token_id: int) -> SampleTokens:
    """Returns the row without what stands behind `end`."""
    if image_token_id in row.input_ids[end:]:
        needed = len(row.input_ids) - row.input_ids[::-1].index(image_token_id)
        raise ConfigError(
            f"max_length {end} would cut a picture: the text up to the end of its last picture has "
            f"{needed} tokens; pass a larger max_length, or fewer pictures"
        )
    return SampleTokens(
        input_ids=row.input_ids[:end], labels=row.labels[:end], prompt_mask=row.prompt_mask[:end]
    )
