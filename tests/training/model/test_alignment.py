import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import ConfigError
from training.model.alignment import AlignmentGate, LevelVectors, resample_relevance


def test_a_level_has_the_vector_of_its_number_counted_from_one():
    vectors = LevelVectors(num_levels=5, hidden_size=7)
    chosen = vectors(torch.tensor([1, 5, 3]))
    assert torch.equal(chosen, vectors.weight[[0, 4, 2]])


def test_mix_adds_the_global_vector_to_a_mix_of_the_others():
    vectors = LevelVectors(num_levels=4, hidden_size=6)
    weights = torch.rand(3, 3)
    mixed = vectors.mix(weights)
    for row in range(3):
        expected = vectors.weight[3].clone()
        for level in range(3):
            expected = expected + weights[row, level] * vectors.weight[level]
        torch.testing.assert_close(mixed[row], expected)


def test_mix_without_the_global_vector_is_the_local_ablation():
    vectors = LevelVectors(num_levels=3, hidden_size=4)
    mixed = vectors.mix(torch.tensor([[0.25, 0.75]]), global_weight=0.0)
    expected = 0.25 * vectors.weight[0] + 0.75 * vectors.weight[1]
    torch.testing.assert_close(mixed[0], expected)


def test_mix_fires_the_hooks_that_zero3_gathers_parameters_in():
    vectors = LevelVectors(num_levels=3, hidden_size=4)
    calls = []
    vectors.register_forward_pre_hook(lambda *_: calls.append("hook"))
    vectors.mix(torch.zeros(1, 2))
    assert calls == ["hook"]


def test_level_vectors_start_xavier_uniform():
    vectors = LevelVectors(num_levels=8, hidden_size=512)
    bound = math.sqrt(6 / (8 + 512))
    assert vectors.weight.abs().max() <= bound
    assert vectors.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_level_vectors_take_levels_or_weights_but_not_both_or_none():
    vectors = LevelVectors(num_levels=3, hidden_size=4)
    with pytest.raises(ConfigError):
        vectors()
    with pytest.raises(ConfigError):
        vectors(torch.tensor([1]), torch.zeros(1, 2))


def test_gate_is_the_softmax_of_an_mlp_of_each_patchs_product_with_the_text():
    gate = AlignmentGate(num_patches=9, num_levels=4, gate_hidden_size=5).double()
    features, text = torch.randn(2, 9, 6).double(), torch.randn(2, 6).double()
    weights = gate(features, text)
    first, _, second = gate.mlp
    for row in range(2):
        relevance = torch.stack([features[row, p] @ text[row] for p in range(9)])
        hidden = first.weight @ relevance + first.bias
        hidden = torch.stack([h * 0.5 * (1 + torch.erf(h / math.sqrt(2))) for h in hidden])
        logits = second.weight @ hidden + second.bias
        torch.testing.assert_close(weights[row], logits.exp() / logits.exp().sum())


def test_gate_has_the_shapes_of_the_published_weights():
    gate = AlignmentGate(num_patches=576, num_levels=8)
    shapes = {name: tuple(weight.shape) for name, weight in gate.state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (256, 576),
        "mlp.0.bias": (256,),
        "mlp.2.weight": (7, 256),
        "mlp.2.bias": (7,),
    }


def test_at_576_patches_the_gate_is_the_published_formula_and_resampling_changes_nothing():
    torch.manual_seed(0)
    gate = AlignmentGate(num_patches=576, num_levels=8).double()
    features, text = torch.randn(2, 576, 12).double(), torch.randn(2, 12).double()
    first, first_bias, second, second_bias = (w.detach() for w in gate.state_dict().values())
    assert first.shape == (256, 576)
    for row in range(2):
        relevance = (features[row] * text[row]).sum(dim=-1)  # <image_feature_p, t>
        hidden = (first * relevance).sum(dim=-1) + first_bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        logits = (second * hidden).sum(dim=-1) + second_bias
        expected = logits.exp() / logits.exp().sum()
        torch.testing.assert_close(gate(features, text)[row], expected)
    # four times the patches, each four a picture's one: what resampling gives is the same again
    finer = features.unflatten(1, (24, 24)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(gate(finer.flatten(1, 2), text), gate(features, text))


def test_at_the_trained_number_of_patches_nothing_is_resampled():
    relevance = torch.randn(2, 576)
    assert resample_relevance(relevance, 576) is relevance


def test_a_finer_square_map_is_averaged_over_the_areas_it_covers():
    grid = torch.arange(16.0).reshape(1, 4, 4)
    coarse = resample_relevance(grid.flatten(1), 4).reshape(2, 2)
    for row in range(2):
        for column in range(2):
            area = grid[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert coarse[row, column] == area.mean()


@settings(max_examples=40)
@given(patches=st.integers(1, 40), wanted=st.integers(1, 40), value=st.floats(-5, 5))
def test_resampling_gives_the_wanted_number_and_keeps_a_constant(patches, wanted, value):
    resampled = resample_relevance(torch.full((2, patches), value), wanted)
    torch.testing.assert_close(resampled, torch.full((2, wanted), value))


@pytest.mark.parametrize("patches", [4, 7, 16, 25, 50])
def test_gate_takes_any_number_of_patches(patches):
    gate = AlignmentGate(num_patches=16, num_levels=8)
    weights = gate(torch.randn(3, patches, 6), torch.randn(3, 6))
    assert weights.shape == (3, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3))
