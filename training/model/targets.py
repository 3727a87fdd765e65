"""What each token is to predict, and the loss of predicting it."""

import torch.nn.functional as F
from torch import Tensor

from training.model.inputs import IGNORE_INDEX


def next_targets(labels: Tensor, sample_index: Tensor | None) -> Tensor:
    """Returns for each token the label that it is to predict, (B, T).

    The first token of a packed sample is predicted by none, as if it stood in a row of its own.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if sample_index is None:
        return targets
    next_sample = F.pad(sample_index[:, 1:], (0, 1), value=-1)
    return targets.masked_fill(next_sample != sample_index, IGNORE_INDEX)


def target_columns(targets: Tensor) -> Tensor:
    """Returns the columns in which any row has a target, at least one, (K,)."""
    has_target = (targets != IGNORE_INDEX).any(dim=0)
    has_target[0] |= ~has_target.any()
    return has_target.nonzero().squeeze(1)


def token_loss(
    logits: Tensor, targets: Tensor, logits_to_keep: int | Tensor, num_items: Tensor | int | None
) -> Tensor:
    """Returns the cross entropy of the targets: their mean, or their sum over `num_items`.

    Args:
        logits: (B, K, V) of the columns kept.
        targets: (B, T).
        logits_to_keep: these columns, or how many from the last, 0 for all, as transformers has it.
        num_items: what the sum is divided by instead of the number of targets.
    """
    if isinstance(logits_to_keep, int):
        kept = targets[:, -logits_to_keep:]
    else:
        kept = targets[:, logits_to_keep]
    total = F.cross_entropy(
        logits.float().flatten(0, 1), kept.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    if num_items is None:
        num_items = (kept != IGNORE_INDEX).sum().clamp(min=1)
    return total / num_items
