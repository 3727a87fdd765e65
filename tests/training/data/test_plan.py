from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import LevelCurriculum
from training.data.plan import Curriculum, EpochPlan, pack, padding_ratio, plan_epoch

CAPACITY = 64
FIRST_STEP = (
    (9, 37, 8, 24, 23),
    (38, 30, 11, 6, 19, 20),
    (21, 15, 13, 14, 2, 29, 5, 16, 35, 1),
    (28, 31, 33, 0, 32, 27, 26, 22, 7),
)


def plan_of(keys: list[str], lengths: np.ndarray, **changes: Any) -> EpochPlan:
    settings_ = {"seed": 0, "epoch": 0, "sequences_per_step": 4, "packing_window": 16, **changes}
    return plan_epoch(keys, lengths, tokens_per_sequence=CAPACITY, **settings_)


def keys_of(plan: EpochPlan, keys: list[str]) -> list[list[list[str]]]:
    return [[[keys[sample] for sample in packed] for packed in step] for step in plan.steps]


@given(
    lengths=st.lists(st.integers(0, CAPACITY), max_size=80),
    seed=st.integers(0, 2**32),
    sequences_per_step=st.integers(1, 8),
    packing_window=st.integers(1, 40),
)
@settings(max_examples=100)
def test_every_sample_with_something_to_learn_is_planned_exactly_once(
    lengths: list[int], seed: int, sequences_per_step: int, packing_window: int
) -> None:
    keys = [f"{i:032x}" for i in range(len(lengths))]
    plan = plan_of(
        keys,
        np.array(lengths, dtype=np.int32),
        seed=seed,
        sequences_per_step=sequences_per_step,
        packing_window=packing_window,
    )
    planned = Counter(sample for step in plan.steps for packed in step for sample in packed)
    assert planned == Counter(i for i, length in enumerate(lengths) if length)
    for step in plan.steps:
        assert len(step) == sequences_per_step
        assert any(step)
        assert all(sum(lengths[sample] for sample in packed) <= CAPACITY for packed in step)


@given(order=st.permutations(range(30)))
@settings(max_examples=30)
def test_the_plan_does_not_depend_on_where_a_sample_lies(order: list[int]) -> None:
    lengths = np.arange(30) % 13 + 3
    keys = [f"{i:032x}" for i in range(30)]
    moved = [keys[i] for i in order]
    assert keys_of(plan_of(keys, lengths), keys) == keys_of(
        plan_of(moved, lengths[np.array(order)]), moved
    )


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    lengths = np.arange(40) % 13 + 3
    keys = [f"{i:032x}" for i in range(40)]
    assert plan_of(keys, lengths) == plan_of(keys, lengths)
    assert plan_of(keys, lengths) != plan_of(keys, lengths, epoch=1)
    assert plan_of(keys, lengths) != plan_of(keys, lengths, seed=1)


def test_less_than_three_percent_is_padding_for_lengths_spread_as_in_instruction_data() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.7, 0.5, size=4000), 20, 512).astype(np.int32)
    keys = [f"{i:032x}" for i in range(len(lengths))]
    plan = plan_epoch(
        keys,
        lengths,
        seed=0,
        epoch=0,
        tokens_per_sequence=512,
        sequences_per_step=8,
        packing_window=64,
    )
    assert padding_ratio(plan, lengths, 512) < 0.03


def test_a_sequence_takes_the_first_sample_and_those_that_fill_it_best() -> None:
    lengths = np.array([6, 5, 3, 4, 2])
    assert pack([0, 1, 2, 3, 4], lengths, 10, window=5) == [(0, 3), (1, 2, 4)]
    assert pack([0, 1, 2, 3, 4], lengths, 10, window=3) == [(0, 2), (1, 3), (4,)]


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), room=st.integers(0, 60))
@settings(max_examples=100)
def test_no_other_choice_fills_a_sequence_better(lengths: list[int], room: int) -> None:
    capacity = 30 + room
    packed = pack(range(len(lengths)), np.array(lengths), capacity, window=9)
    sums = {
        sum(others)
        for count in range(len(lengths))
        for others in combinations(lengths[1:], count)
        if lengths[0] + sum(others) <= capacity
    }
    assert sum(lengths[sample] for sample in packed[0]) == lengths[0] + max(sums)


def test_demo_like_pairs_need_as_few_sequences_as_any_packing_can() -> None:
    rng = np.random.default_rng(0)
    lengths = 53 + rng.geometric(0.2, size=614)  # short captions behind 49 image tokens
    packed = pack(range(614), lengths, 512, window=64)
    assert len(packed) <= -(-int(lengths.sum()) // 512) + 1


def test_a_weight_of_one_and_a_half_plans_each_sample_once_or_twice() -> None:
    keys = [f"{i:032x}" for i in range(400)]
    plan = plan_of(keys, np.full(400, 8), packing_window=400)
    weighted = plan_epoch(
        keys,
        np.full(400, 8),
        copies=np.full(400, 1.5),
        seed=0,
        epoch=0,
        tokens_per_sequence=CAPACITY,
        sequences_per_step=4,
        packing_window=400,
    )
    assert plan.num_samples == 400
    counts = Counter(s for step in weighted.steps for packed in step for s in packed)
    assert set(counts.values()) == {1, 2}
    assert 500 < weighted.num_samples < 700


def some_levels(count: int) -> np.ndarray:
    """Returns levels from 1 to 8, and 0 for one sample in nine."""
    return np.arange(count) * 5 % 9


def levels_in_order(kind: LevelCurriculum, epoch: int = 0, epochs: int = 1) -> list[int]:
    """Returns the levels of 900 samples in the order of the plan's steps."""
    keys = [f"{i:032x}" for i in range(900)]
    curriculum = Curriculum(kind=kind, levels=some_levels(900), num_levels=8, epochs=epochs)
    plan = plan_of(keys, np.full(900, 16), epoch=epoch, curriculum=curriculum)
    samples = [sample for step in plan.steps for packed in step for sample in packed]
    assert len(set(samples)) == len(samples)
    return some_levels(900)[samples].tolist()


def test_without_a_curriculum_the_plan_is_what_it_was() -> None:
    keys = [f"{i:032x}" for i in range(40)]
    lengths = np.arange(40) % 13 + 3
    none = Curriculum(kind="none", levels=some_levels(40), num_levels=8, epochs=1)
    assert plan_of(keys, lengths, curriculum=none) == plan_of(keys, lengths)
    # As before there were curricula: another plan would change what runs that go on have to see.
    assert plan_of(keys, lengths).steps[0] == FIRST_STEP


def test_low_levels_come_first_and_every_sample_once() -> None:
    levels = levels_in_order("low_first")
    assert Counter(levels) == Counter(some_levels(900).tolist())
    thirds = [[level for level in part if level] for part in np.array_split(levels, 3)]
    means = [float(np.mean(part)) for part in thirds]
    assert means[0] < 3.5 < means[1] < 5.5 < means[2]
    assert len(set(thirds[0])) > 3  # neighbouring levels overlap
    unlevelled = np.flatnonzero(np.array(levels) == 0)
    assert 0.4 < unlevelled.mean() / 900 < 0.6


def test_low_levels_are_left_out_one_after_the_other_over_all_epochs() -> None:
    first, last = (levels_in_order("low_left_out", epoch, epochs=2) for epoch in (0, 1))
    assert Counter(first)[8] == Counter(last)[8] == 100
    assert Counter(first)[0] == Counter(last)[0] == 100
    assert set(last) == {0, 5, 6, 7, 8}
    assert 1 in first[:100] and 1 not in first[300:]
    counts = Counter(first)
    assert counts[1] < counts[2] < counts[3] < counts[4] <= counts[5] == 100
