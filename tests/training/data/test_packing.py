from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.packing import pack


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
