"""What is said of a model's levels: on tiny models, where the right answer is known."""

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from training.config import ModelConfig, ParallelConfig, TrainConfig
from training.data.collate import EncodedSample, collate
from training.evaluation.dataset_loss import dataset_loss
from training.evaluation.levels import LevelsFound, sample_numbers, task_kinds, told, vectors_of
from training.model.inputs import IGNORE_INDEX, SampleTokens
from training.parts import from_parts


def looked_at(model: str, data: str, levels: tuple[int, ...], **settings: Any) -> LevelsFound:
    _, _, found = dataset_loss(
        model,
        [data],
        tokens_per_sequence=128,
        samples=12,
        precision="fp32",
        told_levels=levels,
        **settings,
    )
    assert found is not None
    return found


def write_model(folder: Path, parts: dict[str, str], mode: Any) -> str:
    model = ModelConfig(**parts, num_levels=4, alignment_mode=mode)
    made = from_parts(TrainConfig(model=model, parallel=ParallelConfig(precision="fp32")))
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return str(folder)


def test_a_model_that_always_takes_the_best_level_loses_nothing_when_told_it(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model", tiny_parts, "global")
    found = looked_at(model, conversation_dataset, (1, 3), form="conversation")
    assert set(found.told) == {1, 3, 4}
    assert found.told[4].loss == pytest.approx(found.untold, abs=1e-6)
    assert found.told[4].difference == 0.0
    for level in (1, 3):
        told_it = found.told[level]
        assert told_it.difference == pytest.approx(told_it.loss - found.told[4].loss, abs=1e-6)
        assert abs(told_it.difference) > 1e-5
        assert told_it.low <= told_it.difference <= told_it.high
    assert found.gate == {} and found.vectors.moved is None


def test_the_gate_is_shown_by_kind_of_task(model_folder: str, conversation_dataset: str) -> None:
    found = looked_at(model_folder, conversation_dataset, (1,), form="conversation")
    assert found.gate
    assert sum(weights.samples for weights in found.gate.values()) == found.samples > 0
    for weights in found.gate.values():
        assert sum(weights.mean) == pytest.approx(1.0, abs=1e-5)
        assert len(weights.spread) == 3 and min(weights.spread) >= 0


def test_levels_that_a_model_does_not_have_are_refused(
    model_folder: str, tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="this model has the levels 1 to 4"):
        looked_at(model_folder, caption_dataset, (5,), form="caption")
    plain = write_model(tmp_path / "plain", tiny_parts, "none")
    with pytest.raises(ConfigError, match="alignment_mode none, and no levels"):
        looked_at(plain, caption_dataset, (1,), form="caption")


def test_vectors_have_lengths_a_way_and_cosines() -> None:
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    found = vectors_of(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), start)
    assert found.lengths == pytest.approx([1.0, 13**0.5])
    assert found.start_lengths == pytest.approx([1.0, 2.0])
    assert found.moved == pytest.approx([0.0, 3.0])
    assert found.cosines[0] == pytest.approx([1.0, 3 / 13**0.5])
    assert vectors_of(start).moved is None


def sample(key: str, answers: list[int], has_picture: bool = True) -> EncodedSample:
    """Returns a sample of an <align> (98), and a word before each answer of so many tokens."""
    ids, labels = [98] if has_picture else [], [IGNORE_INDEX] if has_picture else []
    for length in answers:
        ids += [5] * (1 + length)
        labels += [IGNORE_INDEX, *[5] * length]
    return EncodedSample(
        key=key,
        tokens=SampleTokens(input_ids=ids, labels=labels, prompt_mask=[False] * len(ids)),
        pixel_values=torch.zeros(1, 3, 2, 2) if has_picture else None,
        alignment_level=2 if has_picture else None,
    )


def test_tasks_are_told_apart_by_their_answers_and_samples_told_a_level_in_their_place() -> None:
    batch = collate(
        [
            [sample("a", [2, 8]), sample("b", [60]), sample("c", [30], has_picture=False)],
            [sample("d", [9, 10])],
        ],
        padding_id=0,
        image_size=(2, 2),
        passes_levels=True,
    )
    kinds = ["short answers", "descriptions", "sentences", "sentences"]
    assert task_kinds(batch, "conversation") == kinds
    assert task_kinds(batch, "caption") == ["captions"] * 4
    owners = sample_numbers(batch)[batch.inputs["input_ids"] == 98]
    assert owners.tolist() == [0, 1, 3]
    assert batch.inputs["alignment_level"].tolist() == [2, 2, 2]
    assert told(batch, 1, 98).inputs["alignment_level"].tolist() == [1, 1, 1]
    assert batch.inputs["alignment_level"].tolist() == [2, 2, 2]
