"""What the model takes: the layout of one sample's tokens, and the tensors of a batch.

A sample with images becomes, token by token,

    [BOS] <align> text … <image> P times … text … answer

- every `<image>` of the text is repeated P times, once for each vector that the vision tower
  gives for an image; the images' vectors replace them in order;
- one `<align>` stands straight after BOS, or first where the tokenizer adds no BOS (after the first
  token, whatever it is, where the model was trained by the published code); the
  alignment vector replaces it. A sample without images has none, nor has mode `none`;
- both ids lie beyond the tokenizer's own words. They are replaced before the embedding lookup,
  so the language model's embedding need not know them, and they are never a target.

Several samples may be packed in one row: `position_ids` restart at 0 with each sample, and
`sample_index` says which sample of the row a token belongs to. Then samples do not see each
other, and each gate reads its own sample's prompt and images alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor

from schemas.errors import ConfigError
from schemas.tokens import IMAGE_TOKEN

IGNORE_INDEX = -100
"""The label of a token that is no target; the default `ignore_index` of PyTorch's losses."""

ALIGN_TOKEN = "<align>"


class AlignGPTInputs(TypedDict, total=False):
    """The tensors of one batch, as `AlignGPTForConditionalGeneration.forward` takes them.

    Only `input_ids` is always there. An absent tensor and None mean the same. (`forward` also
    takes `inputs_embeds`, (B, T, D), in its place: what the language model is to read, as it is,
    which is why images and levels cannot go with it.)

    Shapes: B rows, T tokens of a row, I images in the batch, A `<align>` tokens in the batch.
    Images and `<align>` tokens are counted in the order in which they stand, row by row.

    Attributes:
        input_ids: (B, T) int64, placeholders expanded as above; any valid id where padded.
        attention_mask: (B, T), 1 for a token, 0 for padding on either side. For rows of one
            sample each. Leave it out for packed rows: padding then stands at the end of the row.
        position_ids: (B, T) int64, from 0 in each packed sample, and from 0 again in the padding
            at the end. Packed rows need it; otherwise it follows from `attention_mask`.
        sample_index: (B, T) int64, 0, 1, 2, … the number of the token's sample in its row, -1
            for padding. It says that the rows are packed; left out, a row is one sample.
        prompt_mask: (B, T) bool, the tokens whose mean embedding the gate reads: the sample's
            text before its first target, without BOS and placeholders. Left out, it is found from
            `labels`, or, where there are none, it is all text.
        labels: (B, T) int64, `input_ids` at targets and IGNORE_INDEX elsewhere; not shifted, the
            model shifts them.
        pixel_values: (I, 3, H, W) float. For a batch without images leave it out or pass I = 0.
        vision_features: (I, R, W) in place of `pixel_values`: what the tower makes of them, pooled
            or joined as the projector reads it (`Projector.reduce`).
        alignment_level: (A,) int64, levels from 1 to N: stage 1, where a pair has the vector of
            its own level. Left out in stage 2 and inference, where the gate mixes. In stage 1 pass
            it on every rank and step, with A = 0 for a batch without images: it decides which
            modules run, and all ranks must run the same ones.
        num_items_in_batch: int or scalar tensor; the loss is the sum over this batch's targets
            divided by it. Left out, the loss is their mean.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    sample_index: Tensor | None
    prompt_mask: Tensor | None
    labels: Tensor | None
    pixel_values: Tensor | None
    vision_features: Tensor | None
    alignment_level: Tensor | None
    num_items_in_batch: Tensor | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placeholders:
    """The ids and counts that lay out a sample; a processor gives its own as `placeholders`."""

    image_token_id: int
    """Id of `<image>`."""
    align_token_id: int
    """Id of `<align>`."""
    num_image_tokens: int
    """Vectors of one image, P."""
    bos_token_id: int | None
    """Id after which `<align>` stands; None where the tokenizer starts no text with BOS."""
    has_align_token: bool = True
    """False in mode `none`, which has no alignment vector."""
    align_after_first_token: bool = False
    """True to put `<align>` after the first token, BOS or not, and to leave the first word out of
    what the gate reads, as the published code does."""
    tokenizes_by_piece: bool = False
    """True to tokenise the text around each picture as texts of their own, as the published code
    does."""

    def length(self, num_text_tokens: int, num_images: int) -> int:
        """Returns the tokens of a laid out sample; `num_text_tokens` counts no placeholder."""
        align = 1 if num_images and self.has_align_token else 0
        return num_text_tokens + num_images * self.num_image_tokens + align


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTokens:
    """One sample's tokens, laid out; three lists of one length."""

    input_ids: list[int]
    """Words and placeholders."""
    labels: list[int]
    """The token itself where it is a target, IGNORE_INDEX elsewhere."""
    prompt_mask: list[bool]
    """True at the text before the first target, BOS and placeholders left out."""


def lay_out(
    token_ids: Sequence[int], is_target: Sequence[bool], placeholders: Placeholders
) -> SampleTokens:
    """Returns the sample with `<image>` expanded, `<align>` inserted, labels and prompt mask.

    Args:
        token_ids: the tokenised text with BOS where the tokenizer adds it, and each image as a
            single `<image>` token.
        is_target: for each token, whether the model is to learn to say it.
        placeholders: the ids of the model's processor.

    Raises:
        ConfigError: the lengths differ, `<align>` stands in the text, or `<image>` is a target.
    """
    if len(token_ids) != len(is_target):
        raise ConfigError(
            f"is_target must have one entry for each of the {len(token_ids)} tokens, "
            f"got {len(is_target)}"
        )
    if placeholders.align_token_id in token_ids:
        raise ConfigError(f"a text must not hold {ALIGN_TOKEN}: the layout sets it")
    image = placeholders.image_token_id
    input_ids: list[int] = []
    labels: list[int] = []
    for token, target in zip(token_ids, is_target, strict=True):
        if target and token == image:
            raise ConfigError(f"an {IMAGE_TOKEN} token is marked as a target of training")
        count = placeholders.num_image_tokens if token == image else 1
        input_ids.extend([token] * count)
        labels.extend([token if target else IGNORE_INDEX] * count)
    if image in token_ids and placeholders.has_align_token:
        position = 1
        if not placeholders.align_after_first_token:
            position = align_position(input_ids, placeholders.bos_token_id)
        input_ids.insert(position, placeholders.align_token_id)
        labels.insert(position, IGNORE_INDEX)
    return SampleTokens(
        input_ids=input_ids,
        labels=labels,
        prompt_mask=_prompt_mask(input_ids, labels, placeholders),
    )


def align_position(input_ids: Sequence[int], bos_token_id: int | None) -> int:
    """Returns where `<align>` goes: 1 after a leading BOS, else 0.

    Source: arXiv:2405.14129 inserts it at position 1 of sequences that start with BOS.
    """
    starts_with_bos = bos_token_id is not None and list(input_ids[:1]) == [bos_token_id]
    return 1 if starts_with_bos else 0


def _prompt_mask(input_ids: list[int], labels: list[int], placeholders: Placeholders) -> list[bool]:
    """Returns True at the text before the first target, BOS and placeholders left out."""
    first_target = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
    left_out = {
        placeholders.image_token_id,
        placeholders.align_token_id,
        placeholders.bos_token_id,
    }
    mask = [i < first_target and token not in left_out for i, token in enumerate(input_ids)]
    if placeholders.align_after_first_token and placeholders.bos_token_id is None and True in mask:
        mask[mask.index(True)] = False
    return mask
