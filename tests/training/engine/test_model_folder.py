"""Weights as they are gathered from where they lie."""

import pytest
import torch
from torch import nn

from training.engine.deepspeed import start_distributed
from training.engine.model_folder import gathered_weights


class Tied(nn.Module):
    """Two layers of one weight, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.other.weight = self.one.weight
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("computed", torch.zeros(3), persistent=False)


@pytest.fixture(autouse=True)
def alone() -> None:
    """One process that is a group of its own."""
    start_distributed()


def test_weights_that_are_one_stay_one_and_buffers_are_those_that_are_saved():
    model = Tied()
    found = gathered_weights(model)
    assert set(found) == {"one.weight", "other.weight", "kept"}
    assert found["one.weight"] is found["other.weight"]
    assert torch.equal(found["one.weight"], model.one.weight)


def test_what_was_gathered_does_not_change_with_the_model():
    model = nn.Linear(2, 1)
    found = gathered_weights(model)
    before = found["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(found["weight"], before)
    assert not found["weight"].requires_grad
