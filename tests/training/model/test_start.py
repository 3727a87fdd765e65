"""Where a new projector starts: its scale, and the map in closed form."""

import numpy as np
import pytest
import torch

from schemas.errors import ConfigError
from training.model.projector import Projector
from training.model.start import FeatureMoments, start_projector, word_spread

CHANNELS, HIDDEN = 6, 8


def pairs(count: int, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns features (n, 3, W) far from standardised, and embeddings that follow from them."""
    chance = torch.Generator().manual_seed(0)
    features = torch.randn(count, 3, CHANNELS, generator=chance)
    true_map = torch.randn(CHANNELS, HIDDEN, generator=chance)
    embeddings = features.mean(dim=1) @ true_map
    embeddings = embeddings + noise * torch.randn(count, HIDDEN, generator=chance) + 2.0
    scales = torch.tensor([0.1, 1.0, 50.0, 3.0, 0.2, 7.0])
    return features * scales + 5.0 * scales, embeddings


def moments_of(features: torch.Tensor, embeddings: torch.Tensor) -> FeatureMoments:
    moments = FeatureMoments(CHANNELS, HIDDEN)
    for start in range(0, len(features), 16):
        moments.add(features[start : start + 16], embeddings[start : start + 16])
    return moments


def test_the_streamed_map_equals_a_ridge_regression_of_all_pairs_at_once():
    features, embeddings = pairs(200)
    weights, at_mean, report = moments_of(features, embeddings).regression()
    flat = features.reshape(-1, CHANNELS).double().numpy()
    x = (features.double().mean(dim=1).numpy() - flat.mean(axis=0)) / flat.std(axis=0)
    y = embeddings.double().numpy()
    kept = np.arange(200) % 10 != 9
    x_mean, y_mean = x[kept].mean(axis=0), y[kept].mean(axis=0)
    a, b = x[kept] - x_mean, y[kept] - y_mean
    gram = a.T @ a + report.strength * kept.sum() * np.eye(CHANNELS)
    expected = np.linalg.solve(gram, a.T @ b)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6, atol=1e-9)
    left = y[~kept] - (x[~kept] @ expected + y_mean - x_mean @ expected)
    r_squared = 1 - (left**2).sum() / ((y[~kept] - y_mean) ** 2).sum()
    assert report.r_squared == pytest.approx(r_squared, abs=1e-9)
    assert report.r_squared > 0.9 and (report.pairs, report.held_out) == (180, 20)
    np.testing.assert_allclose(at_mean.numpy(), y_mean - x_mean @ expected, rtol=1e-6)


def test_words_that_have_nothing_to_do_with_the_pictures_are_not_explained():
    features, embeddings = pairs(400)
    _, _, report = moments_of(features, embeddings[torch.randperm(400)]).regression()
    assert report.r_squared < 0.1


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "mlp4x_gelu"])
def test_any_projector_starts_as_the_regressions_map(kind):
    features, embeddings = pairs(200)
    # Of rank 4 = D / 2, so that a hidden layer has room for all of it.
    embeddings = embeddings[:, :4].repeat(1, 2)
    moments = moments_of(features, embeddings)
    projector = Projector(kind, CHANNELS, HIDDEN, standardizes=True)
    start_projector(projector, moments, features, spread=1.0, start="regression")
    weights, at_mean, _ = moments.regression()
    mean, scale = moments.standardisation()
    mapped = (((features.double() - mean) * scale) @ weights).float()
    said = projector(features, is_reduced=True).detach()
    factor = (said - at_mean.float()).norm() / mapped.norm()
    torch.testing.assert_close(said, mapped * factor + at_mean.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start", ["scaled", "regression"])
@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_it_begins_at_the_spread_that_is_asked_for(start, kind):
    features, embeddings = pairs(200)
    projector = Projector(kind, CHANNELS, HIDDEN, standardizes=True)
    words = word_spread(torch.randn(1000, HIDDEN) * 0.3 + 4.0)
    assert words == pytest.approx(0.3, rel=0.05)
    wanted = 1.5 * words
    start_projector(projector, moments_of(features, embeddings), features, wanted, start)
    said = projector(features, is_reduced=True).detach()
    spread = (said - said.mean(dim=(0, 1))).square().mean().sqrt()
    assert float(spread) == pytest.approx(wanted, rel=1e-3)


def test_too_few_pairs_are_refused_with_what_to_do():
    features, embeddings = pairs(12)
    with pytest.raises(ConfigError, match="take scaled"):
        moments_of(features, embeddings).regression()
