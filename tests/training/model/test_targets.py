"""What each token is to predict, and the loss of it."""

import pytest
import torch
import torch.nn.functional as F

from training.model.inputs import IGNORE_INDEX
from training.model.targets import next_targets, target_columns, token_loss

N = IGNORE_INDEX


def test_each_token_predicts_the_next_and_the_last_none():
    labels = torch.tensor([[N, 5, 6], [7, 8, N]])
    assert next_targets(labels, None).tolist() == [[5, 6, N], [8, N, N]]


def test_the_first_token_of_a_packed_sample_is_predicted_by_none():
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    index = torch.tensor([[0, 0, 1, 1, -1]])
    assert next_targets(labels, index).tolist() == [[2, N, 4, N, N]]


def test_columns_are_those_in_which_some_row_learns_and_at_least_one():
    targets = torch.tensor([[N, 3, N, N], [N, N, N, 4]])
    assert target_columns(targets).tolist() == [1, 3]
    assert target_columns(torch.full((2, 3), N)).tolist() == [0]


def test_the_loss_is_the_mean_of_the_kept_targets_or_their_sum_over_a_number():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, N, 2], [N, N, 3]])
    by_hand = [-F.log_softmax(logits[r, c], 0)[targets[r, c]] for r, c in ((0, 0), (0, 2), (1, 2))]
    assert token_loss(logits, targets, 0, None) == pytest.approx(sum(by_hand).item() / 3)
    assert token_loss(logits, targets, 0, 10) == pytest.approx(sum(by_hand).item() / 10)
    last = sum(by_hand[1:]).item() / 2
    assert token_loss(logits[:, 2:], targets, 1, None) == pytest.approx(last)
    columns = torch.tensor([0, 2])
    kept = token_loss(logits[:, columns], targets, columns, None)
    assert kept == pytest.approx(sum(by_hand).item() / 3)


def test_no_targets_have_no_loss():
    assert token_loss(torch.zeros(1, 2, 3), torch.full((1, 2), N), 0, None) == 0
