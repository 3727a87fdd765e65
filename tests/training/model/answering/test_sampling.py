"""How the next word is chosen."""

import pytest
import torch

from schemas.errors import ConfigError
from training.model.answering.sampling import Sampler, Sampling

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.0, 3.0, 2.0, -50.0])


def drawn(count: int, **settings) -> list[int]:
    sampler = Sampler(Sampling(**settings), CPU)
    return [sampler.choose(LOGITS) for _ in range(count)]


def test_without_heat_the_likeliest_word_is_taken():
    assert drawn(5) == [1] * 5
    assert Sampler(Sampling(), CPU).choose(torch.tensor([1.0, 1.0, 0.0])) == 0


def test_a_seed_draws_the_same_words_and_another_seed_others():
    first = drawn(50, temperature=1.0, seed=1)
    assert drawn(50, temperature=1.0, seed=1) == first
    assert drawn(50, temperature=1.0, seed=2) != first


def test_words_are_drawn_by_their_odds_and_only_among_the_likeliest():
    words = drawn(2000, temperature=1.0, seed=0)
    odds = LOGITS.softmax(0).tolist()  # 0.035, 0.710, 0.261
    for word in range(3):
        assert words.count(word) / 2000 == pytest.approx(odds[word], abs=0.04)
    assert 3 not in words
    assert set(drawn(200, temperature=1.0, top_p=0.7, seed=0)) == {1}
    assert set(drawn(200, temperature=1.0, top_p=0.9, seed=0)) == {1, 2}
    cold = drawn(2000, temperature=0.5, seed=0)
    assert cold.count(1) / 2000 == pytest.approx((2 * LOGITS).softmax(0)[1].item(), abs=0.04)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": tuple("abcde")},
    ],
)
def test_numbers_out_of_their_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
