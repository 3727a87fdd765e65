"""Whether a projector tells pictures apart."""

import pytest
import torch

from training.evaluation.alikeness import alikeness


def test_a_constant_prompt_is_warned_of():
    prompt = torch.randn(1, 4, 32)
    found = alikeness(prompt.expand(8, 4, 32) + 0.01 * torch.randn(8, 4, 32), words=0.1)
    assert found is not None and found.cosine > 0.99
    assert "all alike" in str(found)


def test_pictures_that_differ_are_not():
    features = 0.2 * torch.randn(8, 4, 512, generator=torch.Generator().manual_seed(0))
    found = alikeness(features, words=0.1)
    assert found is not None and found.spread == pytest.approx(0.2, rel=0.05)
    assert abs(found.cosine) < 0.1 and "all alike" not in str(found)


def test_one_picture_cannot_be_compared():
    assert alikeness(torch.randn(1, 4, 8), words=0.1) is None
