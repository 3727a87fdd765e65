import pytest
import torch
import torch.nn.functional as F

from schemas.errors import ConfigError
from training.model.projector import Projector, reduced_count


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


def test_pixel_shuffle_joins_each_square_of_neighbours_and_loses_nothing():
    projector = Projector("pixel_shuffle2_linear", 3, 7)
    features = torch.arange(16 * 3.0).reshape(1, 16, 3)
    joined = projector.reduce(features)
    assert joined.shape == (1, 4, 12)
    grid = features.reshape(4, 4, 3)
    torch.testing.assert_close(joined[0, 1], grid[0:2, 2:4].reshape(12))
    torch.testing.assert_close(joined[0, 2], grid[2:4, 0:2].reshape(12))
    assert projector(features).shape == (1, 4, 7)


def test_pooling_averages_the_map_to_so_many_vectors():
    features = torch.arange(16 * 3.0).reshape(1, 16, 3)
    pooled = Projector("pool2_linear", 3, 7).reduce(features)
    grid = features.reshape(4, 4, 3)
    torch.testing.assert_close(pooled[0, 3], grid[2:4, 2:4].mean(dim=(0, 1)))
    assert reduced_count("pool2_mlp2x_gelu", 49) == 4


@pytest.mark.parametrize(
    ("kind", "patches", "said"),
    [
        ("pixel_shuffle2_linear", 49, "multiple of 2"),
        ("pixel_shuffle2_linear", 577, "square map"),
        ("pool9_linear", 49, "7 x 7"),
    ],
)
def test_patches_that_cannot_be_joined_are_refused(kind, patches, said):
    with pytest.raises(ConfigError, match=said):
        reduced_count(kind, patches)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "pool2_mlp2x_gelu"])
def test_folded_weights_need_no_standardised_features(kind):
    projector = Projector(kind, 5, 7, standardizes=True)
    projector.feature_mean.copy_(torch.randn(5) * 10)
    projector.feature_scale.copy_(torch.rand(5) + 0.1)
    plain = Projector(kind, 5, 7)
    plain.layers.load_state_dict(projector.folded())
    features = torch.randn(2, 16, 5) * 3
    torch.testing.assert_close(plain(features), projector(features), rtol=1e-4, atol=1e-4)
    assert projector.standardizes and not plain.standardizes
    assert "feature_mean" not in plain.state_dict()
