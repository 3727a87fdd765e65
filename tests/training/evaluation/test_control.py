"""The control: which pictures are exchanged, and what the difference is."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluation.control import (
    Pictured,
    SampleResult,
    compared,
    exchanged,
    in_words,
    loss_difference,
)

SAMPLES = st.lists(
    st.builds(
        Pictured,
        key=st.uuids().map(str),
        hashes=st.lists(st.sampled_from("abcde"), max_size=2).map(tuple),
        caption=st.sampled_from(["", "A cat.", "a cat. ", "A dog."]),
    ),
    max_size=12,
    unique_by=lambda sample: sample.key,
)


def may_replace(one: Pictured, other: Pictured) -> bool:
    said = {one.caption.strip().lower(), other.caption.strip().lower()}
    is_same_said = len(said) == 1 and said != {""}
    same_count = len(one.hashes) == len(other.hashes)
    return same_count and not set(one.hashes) & set(other.hashes) and not is_same_said


@given(SAMPLES)
def test_a_picture_is_never_exchanged_for_its_own_or_one_that_shows_the_same(samples):
    for sample, other in zip(samples, exchanged(samples), strict=True):
        if other is not None:
            assert samples[other] is not sample
            assert may_replace(sample, samples[other])
        elif sample.hashes:
            others = [s for s in samples if s is not sample]
            assert not any(may_replace(sample, s) for s in others)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_the_choice_does_not_depend_on_the_order(samples, chance: random.Random):
    def chosen(some):
        found = exchanged(some)
        return {s.key: None if o is None else some[o].key for s, o in zip(some, found, strict=True)}

    shuffled = samples.copy()
    chance.shuffle(shuffled)
    assert chosen(samples) == chosen(shuffled)


def test_every_picture_is_given_out_once_where_all_differ():
    samples = [Pictured(key=f"k{n}", hashes=(f"h{n}",), caption=f"thing {n}") for n in range(50)]
    given = [other for other in exchanged(samples) if other is not None]
    assert sorted(given) == list(range(50))


def test_the_difference_is_per_token_and_its_interval_holds_it():
    chance = np.random.default_rng(1)
    targets = chance.integers(1, 9, 200).astype(float)
    right = chance.normal(2.0, 0.5, 200) * targets
    found = loss_difference(right, right + 0.3 * targets + chance.normal(0, 0.2, 200), targets)
    assert found.difference == pytest.approx(found.exchanged - found.right)
    assert found.low < found.difference < found.high
    assert found.low > 0.25 and found.high < 0.35
    assert "The model uses its pictures" in in_words(found)


def test_a_small_gain_is_not_called_the_use_of_pictures():
    targets = np.full(200, 3.0)
    right = np.random.default_rng(3).normal(6.0, 1.0, 200)
    found = loss_difference(right, right + 0.1 * targets, targets)
    assert found.is_seen
    assert "hardly uses its pictures" in in_words(found)
    assert "5% of its loss" in in_words(found)


def test_a_model_that_does_not_look_is_told_so_in_plain_words():
    chance = np.random.default_rng(2)
    targets = np.full(60, 3.0)
    right = chance.normal(6.0, 1.0, 60)
    found = loss_difference(right, right + chance.normal(0, 1.0, 60), targets)
    assert found.low < 0 < found.high
    assert "does NOT use its pictures" in in_words(found)


def test_only_samples_that_have_both_are_compared():
    def said(loss: float, targets: int) -> SampleResult:
        return SampleResult(loss=loss, targets=targets, is_exact=False)

    right = {"a": said(2.0, 2), "b": said(3.0, 1), "only right": said(9.0, 1)}
    found = compared(right, {"a": said(4.0, 2), "b": said(3.0, 1)})
    assert (found.samples, found.right, found.exchanged) == (2, 5 / 3, 7 / 3)
