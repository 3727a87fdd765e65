"""The projector: from the vision tower's width to the language model's."""

import re

from torch import Tensor, nn

from schemas.errors import ConfigError

_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


class Projector(nn.Module):
    """Maps image features to the language model's embedding space.

    `mlp2x_gelu` is Linear, GELU, Linear; `mlp{k}x_gelu` has k linear layers with GELU between;
    `linear` is one of them; `identity` passes features of the right width through.

    Shapes: I images, P patches, C channels of the tower, D hidden size.
    Source: LLaVA-1.5 (arXiv:2310.03744), section 3.2.
    """

    def __init__(self, projector_type: str, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_layers(projector_type, in_features, out_features))

    def forward(self, image_features: Tensor) -> Tensor:
        """Returns the features in the language model's space, (I, P, D) from (I, P, C)."""
        projected: Tensor = self.layers(image_features)
        return projected


def check_projector_type(projector_type: str) -> None:
    """Raises ConfigError unless this is the name of a projector."""
    if projector_type not in ("linear", "identity") and not _MLP.fullmatch(projector_type):
        raise ConfigError(
            "projector_type must be linear, identity or mlp{k}x_gelu with k in 1..99, "
            f"got {projector_type}"
        )


def _layers(projector_type: str, in_features: int, out_features: int) -> list[nn.Module]:
    """Returns the projector's layers in order."""
    check_projector_type(projector_type)
    if projector_type == "identity":
        if in_features != out_features:
            raise ConfigError(
                "projector_type identity needs a tower as wide as the language model, "
                f"got {in_features} and {out_features}; use linear or mlp2x_gelu"
            )
        return []
    match = _MLP.fullmatch(projector_type)
    depth = int(match.group(1)) if match else 1
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_features, out_features)]
    return layers
