"""Whether a projector tells pictures apart: how far its vectors vary, and how alike they are.

A projector that has collapsed says the same of every picture: a constant prompt. Its loss may fall
all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.loader import PackedRows, Rows, load_batches
from training.loss import batch_loss

BATCHES = 2
"""Of held-out samples that are looked at: a few pictures, always the same."""
ALIKE = 0.95
"""Mean cosine from which on pictures are called all alike: the demo's blind model had 0.985, its
tower's features 0.28."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alikeness:
    """What a projector says of a few pictures."""

    pictures: int
    spread: float
    """Root mean square of its vectors around their mean."""
    words: float
    """The same of the words' embeddings."""
    cosine: float
    """Mean over pairs of different pictures."""

    def __str__(self) -> str:
        """Returns it in words, with a warning where the pictures are all alike."""
        said = (
            f"Projected pictures: spread {self.spread:.3f} (words {self.words:.3f}), mean cosine "
            f"{self.cosine:.3f} over {self.pictures} held-out pictures."
        )
        if self.cosine < ALIKE:
            return said
        return (
            f"{said}\nWarning: to the language model these pictures are all alike. Train a new "
            "projector with model.projector_start scaled or regression, or at another learning rate"
        )


def alikeness(features: Tensor, words: float) -> Alikeness | None:
    """Returns how alike projected pictures, (I, R, D), are; None for fewer than two."""
    values = features.detach().float()
    count = values.shape[0]
    if count < 2:
        return None
    spread = (values - values.mean(dim=(0, 1))).square().mean().sqrt()
    flat = F.normalize(values.flatten(1), dim=1)
    cosines = flat @ flat.T
    mean = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    return Alikeness(pictures=count, spread=float(spread), words=words, cosine=float(mean))


def held_out_alikeness(
    engine: Any, rows: PackedRows, order: Sequence[Rows], num_levels: int, words: float
) -> Alikeness | None:
    """Returns how alike this process's first held-out pictures are; all call this together."""
    engine.eval()
    found: list[Tensor] = []
    with torch.no_grad():
        for batch in load_batches(rows, order[:BATCHES], workers=0, pin_memory=False):
            features = batch_loss(engine, batch, num_levels).image_features
            if features is not None:
                found.append(features.cpu())
    engine.train()
    return alikeness(torch.cat(found), words) if found else None
