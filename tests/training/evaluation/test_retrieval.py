import json
import math
from typing import Any

import pytest
import torch

from tests.training.conftest import caption_samples
from training.data.dataset import TrainDataset
from training.evaluation.retrieval import (
    GroupScores,
    as_asked,
    candidate_groups,
    error_of_scores,
    measured,
)
from training.parts import load_folder


def test_a_caption_that_any_picture_has_is_not_told_by_the_picture() -> None:
    scores = torch.tensor([[-3.0, -1.0], [-9.0, -1.0]])
    found = measured([GroupScores(scores, torch.tensor([2, 1]), None)])
    assert found["nats_per_token"] == [1.5, 1.0]
    assert found["is_first_plain"] == [0.0, 1.0]
    assert found["is_first"] == [1.0, 1.0]
    assert found["gain_nats"][1] == pytest.approx(0.0, abs=1e-6)
    assert found["gain_nats"][0] == pytest.approx(math.log(2) - math.log1p(math.exp(-6)))


def test_candidates_are_held_out_short_and_never_twice(
    tmp_path: Any, make_dataset: Any, tiny_tokenizer: Any
) -> None:
    dataset = TrainDataset([make_dataset(tmp_path / "d", caption_samples(120))])
    allowed = {dataset[number].key for number in range(100)}
    groups = candidate_groups(dataset, allowed, tiny_tokenizer)
    assert groups and all(len(group) == 20 for group in groups)
    chosen = [dataset[index] for group in groups for index in group]
    assert {sample.key for sample in chosen} <= allowed
    captions = [sample.caption.lower() for sample in chosen]
    assert len(set(captions)) == len(captions)
    assert groups == candidate_groups(dataset, allowed, tiny_tokenizer)


def test_a_pair_asked_in_turns_has_its_caption_as_the_answer(
    tmp_path: Any, make_dataset: Any
) -> None:
    sample = TrainDataset([make_dataset(tmp_path / "d", caption_samples(1))])[0]
    assert as_asked(sample, "caption") is sample
    turns = json.loads(as_asked(sample, "conversation").conversations or "")
    assert turns[1]["value"] == sample.caption


def test_scores_of_a_group_are_those_of_one_pass_over_picture_and_caption(
    tmp_path: Any, make_dataset: Any, model_folder: str
) -> None:
    parts = load_folder(model_folder, torch.float32)
    dataset = TrainDataset([make_dataset(tmp_path / "d", caption_samples(4))])
    assert error_of_scores(parts, dataset, [0, 1, 2, 3], "caption", 2) < 1e-3
