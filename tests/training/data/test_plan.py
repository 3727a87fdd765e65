from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config import LevelCurriculum
from training.data import mapped
from training.data.packing import pack
from training.data.plan import Curriculum, EpochPlan, PlanSettings, plan_epoch, spread

CAPACITY = 64
FIRST_STEP = (
    (9, 37, 8, 24, 23),
    (38, 30, 11, 6, 19, 20),
    (21, 15, 13, 14, 2, 29, 5, 16, 35, 1),
    (28, 31, 33, 0, 32, 27, 26, 22, 7),
)


def plan_of(keys: list[str], lengths: np.ndarray, **changes: Any) -> EpochPlan:
    given = {name: changes.pop(name) for name in ("copies", "curriculum") if name in changes}
    settings_ = {"seed": 0, "epoch": 0, "sequences_per_step": 4, "packing_window": 16}
    settings_ = {"tokens_per_sequence": CAPACITY, **settings_, **changes}
    return plan_epoch(by_key(keys), lengths, PlanSettings(**settings_), **given)


def by_key(keys: list[str]) -> np.ndarray:
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def keys_of(plan: EpochPlan, keys: list[str]) -> list[list[list[str]]]:
    return [[[keys[sample] for sample in packed] for packed in step] for step in plan]


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
    planned = Counter(sample for step in plan for packed in step for sample in packed)
    assert planned == Counter(i for i, length in enumerate(lengths) if length)
    for step in plan:
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
    shape = {"tokens_per_sequence": 512, "sequences_per_step": 8, "packing_window": 64}
    assert plan_of(keys, lengths, **shape).padding_ratio(lengths, 512) < 0.03


def test_a_weight_of_one_and_a_half_plans_each_sample_once_or_twice() -> None:
    keys = [f"{i:032x}" for i in range(400)]
    plan = plan_of(keys, np.full(400, 8), packing_window=400)
    weighted = plan_of(keys, np.full(400, 8), packing_window=400, copies=np.full(400, 1.5))
    assert plan.num_samples == 400
    counts = Counter(s for step in weighted for packed in step for s in packed)
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
    samples = [sample for step in plan for packed in step for sample in packed]
    assert len(set(samples)) == len(samples)
    return some_levels(900)[samples].tolist()


def test_without_a_curriculum_the_plan_is_what_it_was() -> None:
    keys = [f"{i:032x}" for i in range(40)]
    lengths = np.arange(40) % 13 + 3
    none = Curriculum(kind="none", levels=some_levels(40), num_levels=8, epochs=1)
    assert plan_of(keys, lengths, curriculum=none) == plan_of(keys, lengths)
    # As before there were curricula: another plan would change what runs that go on have to see.
    assert plan_of(keys, lengths)[0] == FIRST_STEP


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


def plan_in_lists(
    keys: list[str],
    lengths: np.ndarray,
    copies: np.ndarray,
    curriculum: Curriculum,
    epoch: int,
) -> list[tuple[tuple[int, ...], ...]]:
    """Returns the steps as they were planned before plans were arrays: what runs go on by."""
    rng = np.random.Generator(np.random.Philox(key=[3, epoch]))
    draws = rng.random(len(keys))
    order = [
        sample
        for draw, sample in zip(draws, by_key(keys), strict=True)
        for _ in range(int(copies[sample] + draw) if lengths[sample] else 0)
    ]
    order = [order[place] for place in rng.permutation(len(order))]
    places = np.arange(len(order)) / len(order)
    levels = curriculum.levels[order].astype(int)
    if curriculum.kind == "low_left_out":
        is_kept = (levels == 0) | ((epoch + places) / curriculum.epochs * 8 < levels)
        order = [sample for sample, kept in zip(order, is_kept, strict=True) if kept]
    if curriculum.kind == "low_first":
        wanted = np.where(levels == 0, places, 0.5 * places + 0.5 * ((levels - 0.5) / 8))
        order = [order[place] for place in np.argsort(wanted, kind="stable")]
    packed = pack(order, lengths, CAPACITY, 16)
    steps = [tuple(packed[start : start + 4]) for start in range(0, len(packed), 4)]
    return steps if len(packed) % 4 == 0 else [*steps[:-1], spread(steps[-1], lengths, 4, CAPACITY)]


@pytest.mark.parametrize("kind", ["none", "low_first", "low_left_out"])
@pytest.mark.parametrize("compiled_from", [0, 10_000])
def test_a_plan_in_files_is_that_of_lists_however_it_is_cut_into_pieces(
    kind: LevelCurriculum, compiled_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "PIECE", 37)
    monkeypatch.setattr(mapped.stable_order, "__defaults__", (50,))
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, CAPACITY + 1, 500).astype(np.int32)
    copies = rng.choice([0.0, 1.0, 1.5], 500)
    keys = [f"{i:032x}" for i in rng.permutation(500)]
    levels = some_levels(500).astype(np.int8)
    curriculum = Curriculum(kind=kind, levels=levels, num_levels=8, epochs=2)
    for epoch in (0, 1):
        given = {"copies": copies, "curriculum": curriculum, "compiled_from": compiled_from}
        plan = plan_of(keys, lengths, seed=3, epoch=epoch, **given)
        assert list(plan) == plan_in_lists(keys, lengths, copies, curriculum, epoch)
        assert plan.num_samples == sum(len(packed) for step in plan for packed in step)
