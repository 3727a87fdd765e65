"""What a forward pass gives, and what the language model reads in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from schemas.errors import ConfigError


@dataclass
class AlignGPTOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: scalar, where labels are given.
        logits: (B, T, V), or of the positions asked for; None in training with labels.
        past_key_values: the cache.
        hidden_states: of the language model, where asked for.
        attentions: of the language model, where asked for.
        image_features: (I, P, D) projected, where there are images.
        gate_weights: (A, N - 1) weights of the local vectors, where asked for and mixed.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    image_features: Tensor | None = None
    gate_weights: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The sequence that the language model reads."""

    embeddings: Tensor
    """(B, T, D), images and alignment vectors inserted."""
    image_features: Tensor | None = None
    """(I, P, D), projected."""
    gate_weights: Tensor | None = None
    """(A, N - 1) weights of the gate, with places for as many `<align>` tokens as images."""
    is_used: Tensor | None = None
    """(A,) bool, which of those places an `<align>` token took."""

    def used_gate_weights(self) -> Tensor | None:
        """Returns the weights that were used, a row for each `<align>` token."""
        return None if self.gate_weights is None else self.gate_weights[self.is_used]


def embedded_before(embeddings: Tensor | None, made_of: Iterable[Tensor | None]) -> Embedded:
    """Returns a sequence that the caller has embedded, (B, T, D).

    Args:
        made_of: what it would be made of otherwise; none of it goes with embeddings.

    Raises:
        ConfigError: if both are given, or neither.
    """
    if embeddings is None or any(part is not None for part in made_of):
        raise ConfigError("give input_ids, with images and levels, or inputs_embeds alone")
    return Embedded(embeddings)
