"""The loss of a model folder on datasets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from training.evaluation.dataset_loss import dataset_loss


def loss_of(folder: str, data: str, **settings: Any) -> Any:
    given = {"form": "caption", "tokens_per_sequence": 128, "samples": 0, "precision": "fp32"}
    return dataset_loss(folder, [data], **{**given, **settings})


def test_all_samples_are_read_once_and_the_mean_is_that_of_the_levels(
    model_folder: str, caption_dataset: str
) -> None:
    totals, control, levels = loss_of(model_folder, caption_dataset)
    assert control is levels is None
    assert totals.samples == 48
    assert set(totals.level_losses) == {1, 2, 3, 4}
    pairs = zip(totals.level_losses.values(), totals.level_counts[1:], strict=True)
    assert sum(loss * count for loss, count in pairs) / totals.targets == pytest.approx(totals.loss)
    again, _, _ = loss_of(model_folder, caption_dataset, tokens_per_sequence=64)
    assert again.loss == pytest.approx(totals.loss, rel=1e-5)


def test_a_part_is_the_same_part_each_time(model_folder: str, caption_dataset: str) -> None:
    first, _, _ = loss_of(model_folder, caption_dataset, samples=5)
    again, _, _ = loss_of(model_folder, caption_dataset, samples=5)
    assert first.samples == 5
    assert (first.key_sum, first.loss) == (again.key_sum, again.loss)


def test_pictures_are_exchanged_where_there_are_two(
    model_folder: str, caption_dataset: str, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    _, control, _ = loss_of(model_folder, caption_dataset, samples=6, control="exchanged")
    assert control is not None
    text = {"url": None, "caption": "a red cat", "image": None, "level": None}
    turns = '[{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a red cat"}]'
    alone = make_dataset(tmp_path / "texts", [{**text, "conversations": turns}])
    with pytest.raises(ConfigError, match="no two samples have different pictures"):
        loss_of(model_folder, alone, form="conversation", control="exchanged")
