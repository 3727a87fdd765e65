"""What a run makes of its pictures before the first step."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.config import ModelConfig, TrainConfig
from training.run.vision import samples_of_start


class Pictures:
    """A dataset of samples with so many pictures each, their keys in reversed order."""

    def __init__(self, *counts: int) -> None:
        self._counts = counts

    def first_by_key(self, is_wanted: np.ndarray) -> Iterator[int]:
        return (number for number in reversed(range(len(self._counts))) if is_wanted[number])

    def __getitem__(self, index: int) -> Any:
        return SimpleNamespace(num_images=self._counts[index])


@pytest.mark.parametrize(
    ("start", "expected"), [("paper", []), ("scaled", [4, 2, 0]), ("regression", [4, 2, 0])]
)
def test_a_start_is_computed_from_all_allowed_samples_of_one_picture(start, expected):
    config = TrainConfig(model=ModelConfig(projector_start=start), max_steps=1)
    dataset: Any = Pictures(1, 0, 1, 2, 1, 1)
    assert samples_of_start(config, dataset, np.arange(6) < 5) == expected
