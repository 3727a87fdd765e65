"""Packed samples as the tensors of one pass."""

from dataclasses import replace

import torch

from training.data.collate import EncodedSample, collate
from training.model.inputs import IGNORE_INDEX, SampleTokens


def encoded(key: str, length: int, *, has_image: bool, level: int | None) -> EncodedSample:
    labels = [IGNORE_INDEX] * (length - 1) + [7]
    tokens = SampleTokens(input_ids=[7] * length, labels=labels, prompt_mask=[True] * length)
    image = torch.full((1, 3, 2, 2), float(length)) if has_image else None
    return EncodedSample(key=key, tokens=tokens, pixel_values=image, alignment_level=level)


def test_packed_samples_restart_their_positions_and_keep_the_order_of_their_pictures() -> None:
    rows = [
        [encoded("a", 3, has_image=True, level=4), encoded("b", 2, has_image=False, level=None)],
        [encoded("c", 2, has_image=True, level=2)],
    ]
    batch = collate(rows, padding_id=0, image_size=(2, 2), passes_levels=True)
    inputs = batch.inputs
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert inputs["sample_index"].tolist() == [[0, 0, 0, 1, 1], [0, 0, -1, -1, -1]]
    pixel_values = inputs["pixel_values"]
    assert pixel_values is not None
    assert pixel_values[:, 0, 0, 0].tolist() == [3.0, 2.0]
    assert inputs["alignment_level"].tolist() == [4, 2]
    assert batch.keys == ("a", "b", "c")
    assert batch.target_columns.tolist() == [0, 1, 3]
    ignored = IGNORE_INDEX
    assert batch.targets.tolist() == [[ignored, 7, 7], [7, ignored, ignored]]
    assert batch.target_levels.tolist() == [[4, 4, 0], [2, 0, 0]]


def test_pictures_of_a_sample_stand_in_their_order_and_share_its_level() -> None:
    several = encoded("a", 3, has_image=True, level=4)
    images = torch.stack([torch.full((3, 2, 2), float(number)) for number in range(3)])
    several = replace(several, pixel_values=images)
    rows = [[several, encoded("b", 2, has_image=True, level=1)]]
    inputs = collate(rows, padding_id=0, image_size=(2, 2), passes_levels=True).inputs
    pixel_values = inputs["pixel_values"]
    assert pixel_values is not None
    assert pixel_values[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0, 2.0]
    assert inputs["alignment_level"].tolist() == [4, 1]


def test_an_empty_row_makes_a_batch_that_every_module_can_run() -> None:
    batch = collate([[]], padding_id=0, image_size=(2, 2), passes_levels=True)
    assert batch.inputs["input_ids"].shape == (1, 1)
    assert batch.inputs["pixel_values"].shape == (0, 3, 2, 2)
    assert batch.inputs["alignment_level"].shape == (0,)
    assert batch.targets.tolist() == [[IGNORE_INDEX]]
