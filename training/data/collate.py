"""From the samples of packed sequences to the tensors of one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from training.model.inputs import IGNORE_INDEX, AlignGPTInputs, SampleTokens
from training.model.targets import target_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedSample:
    """A sample, ready to be packed."""

    key: str
    tokens: SampleTokens
    pixel_values: Tensor | None
    """(I, 3, H, W) of its I pictures in their order, or None for text alone."""
    alignment_level: int | None
    vision_features: Tensor | None = None
    """(I, R, W) in place of `pixel_values`, where what the tower gives is stored."""

    @property
    def has_image(self) -> bool:
        """Whether it is not text alone."""
        return self.pixel_values is not None or self.vision_features is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one process sees at once.

    Shapes: B rows, T tokens of a row, S samples, K columns after which some row has a target.
    """

    inputs: AlignGPTInputs
    keys: tuple[str, ...]
    """(S,) in the order of rows, then of `sample_index`."""
    target_columns: Tensor
    """(K,) int64, the columns whose logits are needed; never empty."""
    targets: Tensor
    """(B, K) int64, what each column is to say next; IGNORE_INDEX where it learns nothing."""
    target_levels: Tensor
    """(B, K) int64, alignment level of the target's sample; 0 where it was never levelled."""
    num_skipped: int = 0
    """Samples that the plan has in these rows, but whose picture could not be read."""

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        index = self.inputs["sample_index"]
        assert index is not None
        return int((index >= 0).sum())

    @property
    def num_images(self) -> int:
        """Pictures, of all samples."""
        images = self.inputs.get("vision_features", self.inputs.get("pixel_values"))
        return 0 if images is None else int(images.shape[0])

    def pin_memory(self) -> "Batch":
        """Returns the batch in memory from which a GPU copies while the program goes on.

        The DataLoader calls it, in a thread of its own.
        """
        inputs: dict[str, object] = {
            name: value.pin_memory() if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return replace(
            self,
            inputs=cast(AlignGPTInputs, inputs),
            target_columns=self.target_columns.pin_memory(),
            targets=self.targets.pin_memory(),
            target_levels=self.target_levels.pin_memory(),
        )


def collate(
    rows: Sequence[Sequence[EncodedSample]],
    *,
    padding_id: int,
    image_size: tuple[int, int],
    passes_levels: bool,
    width: int = 0,
    num_skipped: int = 0,
) -> Batch:
    """Returns the tensors of packed rows, each padded at its end to the longest, or to `width`.

    A row may be empty: it is padding alone, so that every process always has a batch.

    Args:
        padding_id: any id of the language model.
        image_size: (H, W) of `pixel_values`, for a batch without pictures.
        passes_levels: whether the model is told the samples' own levels (stage 1).
        width: fewest tokens of a row; a GPU compiles anew for every other.
        num_skipped: samples that are not in `rows` though planned.
    """
    width = max(1, width, *(sum(len(sample.tokens.input_ids) for sample in row) for row in rows))
    inputs, levels = _laid_out(rows, padding_id, width)
    samples = [sample for row in rows for sample in row]
    stored = [s.vision_features for s in samples if s.vision_features is not None]
    if stored:
        inputs["vision_features"] = torch.cat(stored)
    else:
        inputs["pixel_values"] = _stack_images(samples, image_size)
    if passes_levels:
        inputs["alignment_level"] = torch.tensor(
            [sample.alignment_level for sample in samples if sample.has_image], dtype=torch.int64
        )
    targets = _next(cast(Tensor, inputs["labels"]), IGNORE_INDEX)
    columns = target_columns(targets)
    return Batch(
        inputs=inputs,
        keys=tuple(sample.key for sample in samples),
        target_columns=columns,
        targets=targets[:, columns],
        target_levels=_next(levels, 0)[:, columns],
        num_skipped=num_skipped,
    )


def _laid_out(
    rows: Sequence[Sequence[EncodedSample]], padding_id: int, width: int
) -> tuple[AlignGPTInputs, Tensor]:
    """Returns the rows' tokens with what is known of each, and its sample's level, (B, T)."""
    shape = (len(rows), width)
    input_ids = torch.full(shape, padding_id, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    sample_index = torch.full(shape, -1, dtype=torch.int64)
    prompt_mask = torch.zeros(shape, dtype=torch.bool)
    levels = torch.zeros(shape, dtype=torch.int64)
    position_ids = torch.zeros(shape, dtype=torch.int64)
    for r, row in enumerate(rows):
        start = 0
        for s, sample in enumerate(row):
            end = start + len(sample.tokens.input_ids)
            input_ids[r, start:end] = torch.tensor(sample.tokens.input_ids)
            labels[r, start:end] = torch.tensor(sample.tokens.labels)
            prompt_mask[r, start:end] = torch.tensor(sample.tokens.prompt_mask)
            sample_index[r, start:end] = s
            levels[r, start:end] = sample.alignment_level or 0
            position_ids[r, start:end] = torch.arange(end - start)
            start = end
        position_ids[r, start:] = torch.arange(width - start)
    inputs: AlignGPTInputs = {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "sample_index": sample_index,
        "prompt_mask": prompt_mask,
        "labels": labels,
    }
    return inputs, levels


def _next(values: Tensor, last: int) -> Tensor:
    """Returns (B, T) values moved one column to the left, so that t has what stands at t + 1."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], last)], dim=1)


def _stack_images(samples: list[EncodedSample], image_size: tuple[int, int]) -> Tensor:
    """Returns (I, 3, H, W); I may be 0, so that every process runs the same modules."""
    images = [sample.pixel_values for sample in samples if sample.pixel_values is not None]
    if not images:
        return torch.zeros((0, 3, *image_size))
    return torch.cat(images)
