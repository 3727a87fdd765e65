"""Which image, which prompt and which `<align>` token belong together, in padded or packed rows.

All shapes follow from those of the inputs, so that a GPU never waits for a count.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schemas.errors import ConfigError
from training.model.inputs import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Segments:
    """The samples of a batch, as masks and numbers over its tokens and images.

    Shapes: B rows, T tokens of a row, I images, A places of `<align>` tokens, at most I.
    """

    is_image: Tensor
    """(B, T) bool, the `<image>` tokens."""
    is_align: Tensor
    """(B, T) bool, the `<align>` tokens."""
    sample_of_token: Tensor
    """(B * T,) a number for each sample of the batch, -1 for padding."""
    sample_of_image: Tensor
    """(I,) the sample of each image."""
    sample_of_align: Tensor
    """(A,) the sample of each `<align>` token in order; -2 where there are fewer."""

    def prompt_of_image(self, prompt_mask: Tensor) -> Tensor:
        """Returns which tokens are the prompt of each image's sample, (I, B * T) bool."""
        same = self.sample_of_image[:, None] == self.sample_of_token[None, :]
        return same & prompt_mask.flatten()[None, :]

    def images_of_align(self) -> Tensor:
        """Returns which images stand in the sample of each `<align>` token, (A, I) bool."""
        return self.sample_of_align[:, None] == self.sample_of_image[None, :]


def find_segments(
    *,
    input_ids: Tensor,
    sample_number: Tensor,
    image_token_id: int,
    align_token_id: int,
    num_images: int,
    num_image_tokens: int,
    num_align_tokens: int,
    has_levels: bool,
) -> Segments:
    """Returns the samples of a batch.

    Args:
        input_ids: (B, T).
        sample_number: (B, T), the number of the token's sample in its row, -1 for padding.
        image_token_id: the id of `<image>`.
        align_token_id: the id of `<align>`.
        num_images: images in the batch, I.
        num_image_tokens: tokens of an image, P.
        num_align_tokens: places for `<align>` tokens, A.
        has_levels: whether every place must be taken, by a pair of known level.

    Raises:
        ConfigError: images and placeholders do not match.
    """
    is_image = input_ids == image_token_id
    is_align = input_ids == align_token_id
    check(
        is_image.sum() == num_images * num_image_tokens,
        f"the number of <image> tokens must be images x {num_image_tokens}, "
        f"with {num_images} images given",
    )
    num_aligned = is_align.sum()
    check(
        num_aligned == num_align_tokens if has_levels else num_aligned <= num_align_tokens,
        f"there must be one <align> token for each alignment_level ({num_align_tokens} given)"
        if has_levels
        else f"there can be no more <align> tokens than images ({num_images} given)",
    )
    rows = torch.arange(input_ids.shape[0], device=input_ids.device)[:, None]
    number = torch.where(sample_number >= 0, rows * input_ids.shape[1] + sample_number, -1)
    number = number.flatten()
    image_places = _places(is_image, num_images * num_image_tokens)[::num_image_tokens]
    align_places = _places(is_align, num_align_tokens)
    sample_of_align = torch.where(align_places >= 0, number[align_places], -2)
    return Segments(is_image, is_align, number, number[image_places], sample_of_align)


def find_prompts(words: Tensor, labels: Tensor | None, sample_number: Tensor) -> Tensor:
    """Returns which words stand before the first target of their sample, (B, T) bool.

    Args:
        words: (B, T) bool, the tokens that are text, BOS and placeholders left out.
        labels: (B, T), IGNORE_INDEX where a token is no target; None where there are no targets.
        sample_number: (B, T), the number of the token's sample in its row, -1 for padding.
    """
    if labels is None:
        return words
    targets_so_far = (labels != IGNORE_INDEX).cumsum(dim=-1)  # (B, T)
    before = torch.where(labels != IGNORE_INDEX, targets_so_far - 1, targets_so_far)
    return words & (targets_so_far == _at_start(before, sample_number))


def first_words(words: Tensor, sample_number: Tensor) -> Tensor:
    """Returns the first word of each sample, (B, T) bool from (B, T) words and sample numbers."""
    so_far = words.long().cumsum(dim=-1)  # (B, T)
    before_start = _at_start(so_far - words.long(), sample_number)
    return words & (so_far - before_start == 1)


def _at_start(counts: Tensor, sample_number: Tensor) -> Tensor:
    """Returns for each token what `counts` is at the first token of its sample, (B, T).

    Args:
        counts: (B, T), from 0 and never falling along a row.
        sample_number: (B, T).
    """
    starts = torch.ones_like(sample_number, dtype=torch.bool)
    starts[:, 1:] = sample_number[:, 1:] != sample_number[:, :-1]
    return torch.where(starts, counts, 0).cummax(dim=-1).values


def mean_embeddings(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the masked embeddings, (I, D) from (B, T, D) and (I, B * T).

    An empty mask gives zeros.
    """
    sums = mask.to(embeddings.dtype) @ embeddings.flatten(0, 1)
    return sums / mask.sum(dim=-1, keepdim=True).clamp(min=1).to(embeddings.dtype)


def number_samples(
    input_ids: Tensor, attention_mask: Tensor | None, sample_index: Tensor | None
) -> Tensor:
    """Returns the number of each token's sample in its row, (B, T), -1 for padding."""
    if sample_index is not None:
        return sample_index
    if attention_mask is None or attention_mask.shape != input_ids.shape:
        return torch.zeros_like(input_ids)
    return attention_mask.to(input_ids.dtype) - 1


def positions(attention_mask: Tensor) -> Tensor:
    """Returns positions that count the tokens and leave padding out, (B, T)."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def restart_positions(sample_index: Tensor) -> Tensor:
    """Returns positions that restart with each sample of a packed row, (B, T)."""
    places = torch.arange(sample_index.shape[1], device=sample_index.device)
    places = places.expand_as(sample_index)
    return places - _at_start(places, sample_index)


def packed_lengths(position_ids: Tensor) -> dict[str, Any]:
    """Returns where the samples of a packed batch lie, as flash attention's kernels take it.

    The rows stand one after the other; padding at the end of a row is a sample, too. Without
    this, transformers looks for samples in a batch of a single row alone.

    Args:
        position_ids: (B, T), 0 at the start of each sample and of the padding.
    """
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten().to(torch.int32)
    bounds = F.pad(starts, (0, 1), value=flat.numel())
    longest = int(position_ids.max()) + 1
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def sample_bounds(position_ids: Tensor) -> list[list[int]]:
    """Returns where the samples of each packed row begin, and its length.

    Padding at the end of a row is a sample, too.

    Args:
        position_ids: (B, T), 0 at the start of each sample and of the padding.
    """
    width = position_ids.shape[1]
    return [
        [place for place, position in enumerate(row) if position == 0] + [width]
        for row in position_ids.tolist()
    ]


def _places(mask: Tensor, size: int) -> Tensor:
    """Returns the flat indices where the mask holds, (size,), filled up with -1."""
    if size == 0:
        return torch.empty(0, dtype=torch.long, device=mask.device)
    return torch.nonzero_static(mask.flatten(), size=size, fill_value=-1).squeeze(1)


def check(condition: Tensor, message: str) -> None:
    """Raises ConfigError if the condition fails; on a GPU the failure shows up later there."""
    if condition.device.type == "cpu":
        if not condition:
            raise ConfigError(message)
    else:
        torch._assert_async(condition, message)
