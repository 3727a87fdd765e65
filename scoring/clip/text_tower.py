"""The text tower on batches cut to their longest caption, where that leaves the result alone."""

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool

from scoring.clip.captions import pads_on_the_right

GPU_LENGTH_STEP = 8
"""Batches on a GPU are cut to a multiple of this many tokens, so that few shapes occur."""


def length_step(device: torch.device) -> int:
    """Returns what number of tokens batches are cut to a multiple of.

    To a processor one shape is as good as another.
    """
    return 1 if device.type == "cpu" else GPU_LENGTH_STEP


class TextTower:
    """Encodes token ids with a model's text tower.

    Padding leaves a caption's embedding alone where attention is causal and the embedding is taken
    at a token before the padding, and where the padding is masked. Only there a batch is cut to
    its longest caption; every other tower sees its whole context.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: Any, step: int) -> None:
        self._model: Any = model
        self._step = step
        self._causal = _causal_tower(model) if pads_on_the_right(tokenizer) else None
        self._is_masked = pads_on_the_right(tokenizer) and _masks_padding(model, tokenizer)

    @property
    def can_trim(self) -> bool:
        """Whether batches are cut to their longest caption."""
        return self._causal is not None or self._is_masked

    def trim(self, ids: torch.Tensor, lengths: npt.NDArray[np.int64]) -> torch.Tensor:
        """Returns the ids (B, context_length) cut to (B, L), all captions whole."""
        if not self.can_trim:
            return ids
        longest = int(lengths.max())
        return ids[:, : -(-longest // self._step) * self._step]

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns the captions' features (B, D), not normalized, of ids (B, L)."""
        if self._causal is None:
            features: torch.Tensor = self._model.encode_text(ids)
            return features
        return _encode_causal(self._causal, ids)


def _causal_tower(model: torch.nn.Module) -> Any:
    """Returns the module with the text transformer's parts if padding cannot reach its output."""
    tower: Any = model if type(model) is CLIP else getattr(model, "text", None)
    if type(model) not in (CLIP, CustomTextCLIP) or not isinstance(tower, CLIP | TextTransformer):
        return None
    has_class_token = getattr(tower, "cls_emb", None) is not None
    is_padding_aware = bool(getattr(tower, "use_pad_mask", False))
    if tower.attn_mask is None or has_class_token or is_padding_aware:
        return None
    return tower if _pool_type(tower) in ("argmax", "eos", "first") else None


def _pool_type(tower: Any) -> str:
    return str(tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type)


def _encode_causal(tower: Any, ids: torch.Tensor) -> torch.Tensor:
    """Returns what open_clip's text transformer computes, on the first L positions only."""
    length = ids.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(ids).to(dtype)  # (B, L, width)
    x = x + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x)
    eos_id = tower.text_eos_id if isinstance(tower, CLIP) else tower.eos_id
    x = text_global_pool(x, ids, _pool_type(tower), eos_token_id=eos_id)  # (B, width)
    projection = tower.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
    return cast(torch.Tensor, x)


def _masks_padding(model: torch.nn.Module, tokenizer: Any) -> bool:
    text = getattr(model, "text", None)
    return (
        type(model) is CustomTextCLIP
        and isinstance(text, HFTextEncoder)
        and tokenizer.tokenizer.pad_token_id == text.config.pad_token_id
    )
