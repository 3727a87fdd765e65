import pytest
import torch
import torch.nn.functional as F

from schemas.errors import ConfigError
from training.model.projector import Projector


def test_mlp2x_gelu_is_linear_gelu_linear():
    projector = Projector("mlp2x_gelu", 5, 7)
    features = torch.randn(2, 3, 5)
    weights = projector.state_dict()
    hidden = F.gelu(features @ weights["layers.0.weight"].T + weights["layers.0.bias"])
    expected = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    torch.testing.assert_close(projector(features), expected)


@pytest.mark.parametrize(
    ("projector_type", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp3x_gelu", 3)]
)
def test_the_name_says_how_many_linear_layers_there_are(projector_type, layers):
    projector = Projector(projector_type, 5, 7)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector.layers) == layers
    assert projector(torch.randn(1, 2, 5)).shape == (1, 2, 7)


def test_identity_passes_features_through_and_needs_equal_widths():
    features = torch.randn(1, 2, 5)
    assert torch.equal(Projector("identity", 5, 5)(features), features)
    with pytest.raises(ConfigError, match="5 and 7"):
        Projector("identity", 5, 7)


@pytest.mark.parametrize("projector_type", ["mlp0x_gelu", "mlp2x_relu", "conv", "mlp2x_gelu; rm"])
def test_an_unknown_projector_is_refused(projector_type):
    with pytest.raises(ConfigError, match="projector_type"):
        Projector(projector_type, 5, 7)
