from typing import Any

import numpy as np
import pytest
import torch

from tests.training.data.test_lengths import make_encoder
from training.config import DataConfig
from training.data.dataset import TrainDataset
from training.data.lengths import Encoder, SampleLengths, measure_lengths
from training.data.loader import PackedRows, TrainingPlan, load_batches
from training.model.inputs import IGNORE_INDEX


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Any) -> Encoder:
    return make_encoder(tiny_tokenizer, 128)


def test_the_first_token_of_a_sample_is_never_learnt_from_the_sample_before(
    conversation_dataset: str, encoder: Encoder
) -> None:
    dataset = TrainDataset([conversation_dataset])
    for i in range(len(dataset)):
        tokens = encoder.encode(dataset[i])
        assert tokens is not None
        assert tokens.labels[0] == IGNORE_INDEX


def test_lengths_are_those_of_the_batches_and_are_kept_beside_the_shards(
    conversation_dataset: str, encoder: Encoder
) -> None:
    dataset = TrainDataset([conversation_dataset])
    seen: list[int] = []

    def watched(numbers: Any, total: int) -> Any:
        for number in numbers:
            seen.append(number)
            yield number

    first = measure_lengths(dataset, encoder, watched)
    assert len(seen) == len(dataset)
    again = measure_lengths(dataset, encoder, watched)
    assert len(seen) == len(dataset)
    assert again.tokens.tolist() == first.tokens.tolist()
    batch = rows_of(dataset, encoder)[((3, 4), (5,))]
    assert batch.num_tokens == first.tokens[[3, 4, 5]].sum()
    learnt = (batch.targets != IGNORE_INDEX).sum()
    assert learnt == first.targets[[3, 4, 5]].sum()


def test_what_is_too_long_is_cut_and_what_then_teaches_nothing_is_left_out(
    conversation_dataset: str, tiny_tokenizer: Any
) -> None:
    dataset = TrainDataset([conversation_dataset])
    whole = measure_lengths(dataset, make_encoder(tiny_tokenizer, 128), lambda n, _: n)
    cut = measure_lengths(dataset, make_encoder(tiny_tokenizer, 24), lambda n, _: n)
    assert cut.tokens.max() <= 24
    assert np.all((cut.tokens == 0) == (cut.targets == 0))
    assert (cut.targets < whole.targets).any()


def rows_of(dataset: TrainDataset, encoder: Encoder) -> PackedRows:
    return PackedRows(
        dataset,
        encoder,
        lambda image: torch.zeros(3, *image.size),
        image_size=(32, 32),
        passes_levels=False,
    )


@pytest.fixture
def plan() -> TrainingPlan:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, size=100)
    return TrainingPlan(
        np.arange(100),
        SampleLengths(tokens=tokens, targets=tokens // 2),
        np.ones(100),
        DataConfig(tokens_per_sequence=64, sequences_per_step=8, packing_window=32),
        seed=0,
        epochs=3,
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_a_step_whole_and_evenly(plan: TrainingPlan, processes: int) -> None:
    for step in plan.steps_from(0):
        shares = [step.share(process, processes, per_device=2) for process in range(processes)]
        assert len({len(share) for share in shares}) == 1
        rows = [row for share in shares for batch in share for row in batch]
        assert sorted(rows) == sorted(step.sequences)
        # However many processes there are, the same batch is the same sequences.
        assert shares[0][0] == step.sequences[:2]


def test_a_run_goes_on_by_its_step_alone(plan: TrainingPlan) -> None:
    steps = list(plan.steps_from(0))
    assert [step.number for step in steps] == list(range(plan.num_steps))
    assert {step.epoch for step in steps} == {0, 1, 2}
    for first in (1, plan.steps_of_epochs[0], plan.num_steps - 1):
        assert list(plan.steps_from(first)) == steps[first:]


def test_worker_processes_give_the_same_batches_in_the_same_order(
    conversation_dataset: str, encoder: Encoder
) -> None:
    dataset = TrainDataset([conversation_dataset])
    order = [((i, i + 1), (i + 2,)) for i in range(0, 30, 3)]
    rows = PackedRows(dataset, encoder, black, image_size=(32, 32), passes_levels=False)
    alone = list(load_batches(rows, order, workers=0, pin_memory=False))
    shared = list(load_batches(rows, order, workers=2, pin_memory=False))
    assert [batch.keys for batch in shared] == [batch.keys for batch in alone]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])


def black(image: Any) -> torch.Tensor:
    return torch.zeros(3, *image.size)
