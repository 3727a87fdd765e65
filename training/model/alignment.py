"""The alignment module: one vector for each level, and the gate that mixes them.

Level N, the best aligned pairs, has the *global* vector H_N; the other N - 1 are *local*. The
first stage gives a pair the vector of its own level. The second stage and inference mix:

    t   = mean of the prompt's token embeddings
    r_p = <feature_p, t>                       for each projected patch p of the image
    w   = softmax(MLP(r))                      MLP = Linear(P, 256), GELU, Linear(256, N - 1)
    H   = H_N + sum over i < N of w_i * H_i

Source: arXiv:2405.14129, section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError


class LevelVectors(nn.Module):
    """The learned vectors of the alignment levels.

    Shapes: B samples, N levels, D hidden size of the language model.
    Source: arXiv:2405.14129, section 3; xavier-uniform initialisation as in its code.
    """

    def __init__(self, num_levels: int, hidden_size: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.weight = nn.Parameter(torch.empty(num_levels, hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the vectors anew."""
        nn.init.xavier_uniform_(self.weight)

    def forward(
        self,
        alignment_level: Tensor | None = None,
        weights: Tensor | None = None,
        global_weight: float = 1.0,
    ) -> Tensor:
        """Returns one vector a sample, (B, D): of its level, or mixed by its weights.

        Args:
            alignment_level: (B,) levels from 1 to N.
            weights: (B, N - 1) weights of the local vectors.
            global_weight: the factor of the global vector in the mix.
        """
        if (alignment_level is None) == (weights is None):
            raise ConfigError("level vectors take either alignment_level or weights")
        if alignment_level is not None:
            return F.embedding(alignment_level - 1, self.weight)
        assert weights is not None
        global_weights = weights.new_full((weights.shape[0], 1), global_weight)
        return torch.cat([weights, global_weights], dim=-1).to(self.weight.dtype) @ self.weight

    def mix(self, weights: Tensor, global_weight: float = 1.0) -> Tensor:
        """Returns `global_weight * H_N + sum w_i H_i`, (B, D), from weights (B, N - 1).

        It goes through `forward`, so that the hooks of the module fire (ZeRO-3 needs them).
        """
        mixed: Tensor = self(weights=weights, global_weight=global_weight)
        return mixed


class AlignmentGate(nn.Module):
    """Weighs the local alignment vectors by how the image answers the prompt.

    The gate has as many inputs as an image had patches in training (576 in the published
    weights). An image of another number of patches has its relevances resampled to that number:
    as a map where both are squares, else along the sequence. At the trained number nothing is
    resampled, so published weights give their published result.

    Shapes: B images, P patches of an image, D hidden size, N alignment levels, the last global.
    Source: arXiv:2405.14129, section 3; the resampling is ours.
    """

    def __init__(self, num_patches: int, num_levels: int, gate_hidden_size: int = 256) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.mlp = nn.Sequential(
            nn.Linear(num_patches, gate_hidden_size),
            nn.GELU(),
            nn.Linear(gate_hidden_size, num_levels - 1),
        )

    def forward(self, image_features: Tensor, text_embedding: Tensor) -> Tensor:
        """Returns the weights of the local vectors, (B, N - 1), from (B, P, D) and (B, D)."""
        relevance = torch.einsum("bpd,bd->bp", image_features, text_embedding)
        relevance = resample_relevance(relevance, self.num_patches)
        logits: Tensor = self.mlp(relevance)
        return logits.softmax(dim=-1)


def resample_relevance(relevance: Tensor, num_patches: int) -> Tensor:
    """Returns the relevances of an image, (B, P), as if it had `num_patches` patches.

    Fewer patches are means over the areas they cover; more are interpolated linearly. The mean
    relevance is kept as closely as that allows, and an equal number returns the input itself.
    """
    patches = relevance.shape[1]
    if patches == num_patches:
        return relevance
    side, target = _square_side(patches), _square_side(num_patches)
    if side and target:
        grid = relevance.unflatten(1, (1, side, side))
        if target < side:
            resampled = F.adaptive_avg_pool2d(grid, target)
        else:
            resampled = F.interpolate(grid, size=target, mode="bilinear", align_corners=False)
        return resampled.flatten(1)
    line = relevance.unsqueeze(1)
    if num_patches < patches:
        return F.adaptive_avg_pool1d(line, num_patches).squeeze(1)
    return F.interpolate(line, size=num_patches, mode="linear", align_corners=False).squeeze(1)


def _square_side(count: int) -> int:
    """Returns the side of a square of `count` patches, or 0 if there is none."""
    side = round(count**0.5)
    return side if side * side == count else 0
