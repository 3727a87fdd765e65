"""The projector: from the vision tower's width to the language model's.

Its name says what it does to an image's vectors, in order:

    mlp2x_gelu                    nothing but Linear, GELU, Linear (the paper)
    pixel_shuffle2_mlp2x_gelu     each 2 x 2 vectors become one, four times as wide
    pool2_linear                  the map is averaged to 2 x 2 vectors
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.errors import ConfigError

_CONNECTOR = re.compile(
    r"(?:(?P<kind>pool|pixel_shuffle)(?P<count>[1-9]\d?)_)?"
    r"(?P<layers>linear|identity|mlp(?P<depth>[1-9]\d?)x_gelu)"
)


class Projector(nn.Module):
    """Maps image features to the language model's embedding space.

    `mlp2x_gelu` is Linear, GELU, Linear; `mlp{k}x_gelu` has k linear layers with GELU between;
    `linear` is one of them; `identity` passes features of the right width through. Before them
    `pool{k}` leaves k x k vectors of an image, `pixel_shuffle{k}` joins each k x k of them.

    Where features are standardised, each channel has its mean taken off and is brought to a spread
    of one: the numbers are kept with the weights, and `folded` puts them into the first layer.

    Shapes: I images, P patches, C channels of the tower, R vectors left of an image, W channels
    that the first layer reads, D hidden size.
    Source: LLaVA-1.5 (arXiv:2310.03744), section 3.2; pixel shuffle as in Idefics3
    (arXiv:2408.12637), section 3.2; pooling as in LLaVA-OneVision (arXiv:2408.03326).
    """

    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        projector_type: str,
        in_features: int,
        out_features: int,
        *,
        standardizes: bool = False,
    ) -> None:
        super().__init__()
        self.projector_type = projector_type
        self.width = width = reduced_width(projector_type, in_features)
        self.layers = nn.Sequential(*_layers(projector_type, width, out_features))
        if standardizes:
            self.register_buffer("feature_mean", torch.zeros(width))
            self.register_buffer("feature_scale", torch.ones(width))

    def extra_repr(self) -> str:
        """Returns its name."""
        return self.projector_type

    @property
    def standardizes(self) -> bool:
        """Whether the features are standardised before the first layer."""
        return "feature_mean" in self._buffers

    def forward(self, image_features: Tensor, is_reduced: bool = False) -> Tensor:
        """Returns the features in the language model's space, (I, R, D).

        Args:
            image_features: (I, P, C) as the tower gives them.
            is_reduced: whether they are (I, R, W), as `reduce` gives them, instead.
        """
        features = image_features if is_reduced else self.reduce(image_features)
        if self.standardizes:
            features = (features - self.feature_mean) * self.feature_scale
        projected: Tensor = self.layers(features)
        return projected

    def reduce(self, image_features: Tensor) -> Tensor:
        """Returns what the first layer reads, not yet standardised: (I, R, W) from (I, P, C)."""
        return reduce_features(self.projector_type, image_features)

    def folded(self) -> dict[str, Tensor]:
        """Returns the layers' weights, by name, with which features need not be standardised."""
        weights = dict(self.layers.state_dict())
        if self.standardizes:
            first = weights["0.weight"].double() * self.feature_scale.double()
            bias = weights["0.bias"].double() - first @ self.feature_mean.double()
            weights["0.bias"] = bias.to(weights["0.bias"].dtype)
            weights["0.weight"] = first.to(weights["0.weight"].dtype)
        return weights

    def fold(self) -> None:
        """Puts the standardisation into the first layer: what it says stays, its buffers go."""
        self.layers.load_state_dict(self.folded())
        if self.standardizes:
            del self.feature_mean, self.feature_scale


def check_projector_type(projector_type: str) -> None:
    """Raises ConfigError unless this is the name of a projector."""
    if not _CONNECTOR.fullmatch(projector_type):
        raise ConfigError(
            "projector_type must be linear, identity or mlp{k}x_gelu with k in 1..99, or one of "
            "them after pool{k}_ or pixel_shuffle{k}_, as pixel_shuffle2_mlp2x_gelu, "
            f"got {projector_type}"
        )


def plain_type(projector_type: str) -> str:
    """Returns the name of the layers alone, without pooling or pixel shuffle."""
    check_projector_type(projector_type)
    return _CONNECTOR.fullmatch(projector_type)["layers"]  # type: ignore[index]


def reduced_count(projector_type: str, num_patches: int) -> int:
    """Returns how many vectors of an image the language model reads.

    Raises:
        ConfigError: if the tower's patches cannot be joined so.
    """
    kind, count = _reduction(projector_type)
    if kind is None:
        return num_patches
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ConfigError(
            f"projector_type {projector_type} needs a square map of patches, but the tower gives "
            f"{num_patches}: take vision_feature_select patch, or {plain_type(projector_type)}"
        )
    if kind == "pool":
        if count > side:
            raise ConfigError(
                f"projector_type {projector_type} cannot make {count} x {count} vectors of the "
                f"tower's {side} x {side}"
            )
        return count * count
    if side % count:
        raise ConfigError(
            f"projector_type {projector_type} needs a map whose side is a multiple of {count}, but "
            f"the tower gives {side} x {side}: take pool{{k}}_{plain_type(projector_type)}"
        )
    rows: int = (side // count) ** 2
    return rows


def reduced_width(projector_type: str, in_features: int) -> int:
    """Returns the channels that the first layer reads."""
    kind, count = _reduction(projector_type)
    return in_features * count * count if kind == "pixel_shuffle" else in_features


def reduce_features(projector_type: str, features: Tensor) -> Tensor:
    """Returns (I, R, W) from the tower's (I, P, C): pooled, joined, or as they are."""
    kind, count = _reduction(projector_type)
    if kind is None:
        return features
    side = round(features.shape[1] ** 0.5)
    grid = features.unflatten(1, (side, side))  # (I, side, side, C)
    if kind == "pool":
        pooled = F.adaptive_avg_pool2d(grid.permute(0, 3, 1, 2).float(), count)
        return pooled.flatten(2).transpose(1, 2).to(features.dtype)
    blocks = grid.unflatten(2, (-1, count)).unflatten(1, (-1, count))
    joined: Tensor = blocks.transpose(2, 3).flatten(3).flatten(1, 2)  # (I, R, count * count * C)
    return joined


def _reduction(projector_type: str) -> tuple[str | None, int]:
    check_projector_type(projector_type)
    match = _CONNECTOR.fullmatch(projector_type)
    assert match is not None
    return match["kind"], int(match["count"] or 1)


def _layers(projector_type: str, in_features: int, out_features: int) -> list[nn.Module]:
    """Returns the projector's layers in order."""
    check_projector_type(projector_type)
    match = _CONNECTOR.fullmatch(projector_type)
    assert match is not None
    if match["layers"] == "identity":
        if in_features != out_features:
            raise ConfigError(
                "projector_type identity needs a tower as wide as the language model, "
                f"got {in_features} and {out_features}; use linear or mlp2x_gelu"
            )
        return []
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    for _ in range(int(match["depth"] or 1) - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return layers
