"""Sums over the batches of a step."""

import pytest
import torch

from training.data.collate import EncodedSample, collate
from training.engine.deepspeed import start_distributed
from training.loss import BINS, BatchLoss
from training.metrics.totals import RunningTotals
from training.model.inputs import IGNORE_INDEX, SampleTokens


@pytest.fixture(autouse=True)
def alone() -> None:
    """One process that is a group of its own."""
    start_distributed()


def encoded(key: int, length: int, level: int | None, has_image: bool) -> EncodedSample:
    labels = [IGNORE_INDEX] * (length - 1) + [7]
    tokens = SampleTokens(input_ids=[7] * length, labels=labels, prompt_mask=[True] * length)
    image = torch.zeros(1, 3, 2, 2) if has_image else None
    return EncodedSample(
        key=f"{key:08x}" + "0" * 24, tokens=tokens, pixel_values=image, alignment_level=level
    )


def loss_of(total: float, levels: list[float], gates: list[float], count: int) -> BatchLoss:
    return BatchLoss(
        total=torch.tensor(total, requires_grad=True),
        level_sums=torch.tensor(levels),
        gate_sums=torch.tensor(gates),
        gate_count=count,
        gate_weights=None,
        losses=torch.zeros(0),
        image_features=None,
        hits=torch.zeros(0, dtype=torch.bool),
        gate_histogram=torch.full((2, BINS), float(count)),
    )


def test_batches_of_a_step_are_added_up_and_the_next_step_begins_at_zero():
    totals = RunningTotals(3, torch.device("cpu"))
    settings = {"padding_id": 0, "image_size": (2, 2), "passes_levels": False}
    first = collate([[encoded(1, 4, 3, True), encoded(2, 2, 1, True)]], **settings, num_skipped=2)
    second = collate([[encoded(5, 3, None, False)]], **settings, width=8)
    totals.add(first, loss_of(6.0, [0.0, 2.0, 0.0, 4.0], [0.5, 1.5], 2))
    totals.add(second, loss_of(3.0, [3.0, 0.0, 0.0, 0.0], [0.0, 0.0], 0))
    totals.waited(0.25)
    assert [key[:8] for key in totals.keys] == ["00000001", "00000002", "00000005"]
    found = totals.reduce(is_stopping=True)
    assert (found.loss_sum, found.targets, found.loss) == (9.0, 3.0, 3.0)
    assert (found.tokens, found.padded_tokens) == (9.0, 14.0)
    assert (found.samples, found.skipped, found.images, found.key_sum) == (3.0, 2.0, 2.0, 8.0)
    assert found.squared_lengths == 16 + 4 + 9
    assert (found.wait_seconds, found.stop_votes) == (0.25, 1.0)
    assert found.level_sums == (3.0, 2.0, 0.0, 4.0)
    assert found.level_counts == (1.0, 1.0, 0.0, 1.0)
    assert found.level_losses == {1: 2.0, 3: 4.0}
    assert found.gate_means == {1: 0.25, 2: 0.75}
    assert found.gate_histogram == ((2.0,) * BINS,) * 2
    after = totals.reduce(is_stopping=False)
    assert (after.loss, after.samples, after.gate_means, totals.keys) == (0.0, 0.0, {}, [])
