import numpy as np
import pytest

from scoring.control import (
    CELLS,
    EXCHANGES,
    ScoreCounts,
    Wins,
    area,
    area_interval,
    exchange_captions,
    interval_of,
    own_scores,
    share_between,
)


def unit(rows: int, seed: int, width: int = 16) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def exchanged_scores(*arrays: np.ndarray) -> np.ndarray:
    return exchange_captions(*arrays).cosine


def ones(rows: int) -> np.ndarray:
    return np.ones(rows, np.int64)


def test_pairs_that_belong_together_win_and_strangers_win_half_of_the_time():
    image = unit(2000, 0)
    wins = [
        Wins.of(own_scores(image, text), exchanged_scores(image, text, ones(2000)))
        for text in (image, unit(2000, 1))
    ]
    assert wins[0].ratio == 1.0
    assert wins[1].ratio == pytest.approx(0.5, abs=0.02)
    low, high = wins[1].interval()
    assert 0.47 < low < 0.5 < high < 0.53
    assert (wins[1].pairs, wins[1].trials) == (2000, 2000 * EXCHANGES)


def test_no_picture_meets_its_own_caption_and_groups_keep_to_themselves():
    codes = np.array([0, 1, 0, 1, 1, 0, 2])
    image = text = np.eye(7, dtype=np.float32)
    assert not np.nanmax(exchanged_scores(image, text, ones(7)))
    of_group = np.eye(3, dtype=np.float32)[codes]
    within = exchanged_scores(of_group, of_group, ones(7), codes)
    assert (within[codes < 2, :2] == 1.0).all()
    assert np.isnan(within[codes < 2, 2:]).all()  # each has two others
    assert np.isnan(within[codes == 2]).all()


def test_the_best_of_several_captions_is_held_against_the_best_of_as_many():
    image, rows = unit(3000, 0), np.arange(3000)
    choices = np.stack([unit(3000, seed) for seed in (1, 2, 3)], axis=1)
    best = np.einsum("nd,nkd->nk", image, choices).argmax(axis=1)
    text = choices[rows, best]
    own = own_scores(image, text)
    fair = Wins.of(own, exchanged_scores(image, text, np.full(3000, 3)))
    naive = Wins.of(own, exchanged_scores(image, text, ones(3000)))
    assert fair.ratio == pytest.approx(0.5, abs=0.02)
    assert naive.ratio == pytest.approx(0.75, abs=0.02)


def test_few_pairs_have_few_exchanges_and_one_pair_has_none():
    assert Wins.of(np.ones(1, np.float32), exchanged_scores(unit(1, 0), unit(1, 0), ones(1))) == (
        Wins()
    )
    image = unit(3, 0)
    wins = Wins.of(own_scores(image, image), exchanged_scores(image, image, ones(3)))
    assert (wins.pairs, wins.trials, wins.ratio) == (3, 6, 1.0)
    assert Wins().ratio == 0.5
    assert Wins().interval() == (0.0, 1.0)


def test_equal_scores_count_half():
    same = np.zeros(4, np.float32)
    assert Wins.of(same, np.zeros((4, 2), np.float32)).ratio == 0.5


def test_counts_of_parts_are_those_of_the_whole():
    own = np.random.default_rng(0).uniform(-1, 1, 100).astype(np.float32)
    exchanged = np.random.default_rng(1).uniform(-1, 1, (100, 4)).astype(np.float32)
    whole = ScoreCounts.of(own, exchanged)
    parts = ScoreCounts.of(own[:30], exchanged[:30]).plus(ScoreCounts.of(own[30:], exchanged[30:]))
    assert (parts.own == whole.own).all()
    assert (parts.exchanged == whole.exchanged).all()
    assert parts.wins.ratio == pytest.approx(whole.wins.ratio)
    assert parts.wins.interval() == pytest.approx(whole.wins.interval())


def test_the_area_is_how_often_a_score_lies_above_another():
    own = np.random.default_rng(0).normal(0.2, 0.1, 300).astype(np.float32)
    other = np.random.default_rng(1).normal(0.1, 0.1, (300, 2)).astype(np.float32)
    counts = ScoreCounts.of(own, other)
    expected = float((own[:, None] > other.ravel()[None]).mean())
    assert area(counts.own, counts.exchanged) == pytest.approx(expected, abs=1e-3)
    low, high = area_interval(counts.own, counts.exchanged, 300)
    assert low < expected < high
    assert 0.05 < high - low < 0.1  # DeLong's standard error is about 0.019
    nothing = np.zeros(CELLS, np.int64)
    assert area(counts.own, nothing) == 0.5
    assert area_interval(nothing, counts.exchanged, 300) == (0.0, 1.0)


def test_the_interval_is_wilsons_where_each_pair_is_one_draw():
    assert interval_of(0.8, 0.8 * 0.2 / 10, 10, 10, 1.959964) == pytest.approx(
        (0.490162, 0.943318), abs=1e-6
    )
    low, high = interval_of(1.0, 0.0, 10, 80, 1.959964)
    assert (low, high) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_a_share_between_two_scores_may_end_within_a_cell():
    counts = np.zeros(CELLS, np.int64)
    counts[CELLS // 2] = 10  # from 0 to 2 / CELLS
    assert share_between(counts, -1.0, 1.0) == 1.0
    assert share_between(counts, 0.5 / CELLS, 1.0) == pytest.approx(0.75)
    assert share_between(np.zeros(CELLS, np.int64), -1.0, 1.0) == 0.0


def test_an_exchange_says_whose_caption_it_is():
    image, text = unit(40, 0), unit(40, 1)
    captions = np.where(np.arange(40) % 3 == 0, 4, 1)
    found = exchange_captions(image, text, captions)
    is_one = found.partner >= 0
    assert (is_one == ~np.isnan(found.cosine)).all()
    rows = np.repeat(np.arange(40)[:, None], EXCHANGES, axis=1)
    assert (rows != found.partner)[is_one].all()
    own = own_scores(image[rows[is_one]], text[found.partner[is_one]])
    assert found.cosine[is_one] == pytest.approx(own, abs=1e-6)
    # Of four captions the best: none of the three others of the first try fits better.
    tried = image[0] @ text[1:5].T
    assert found.partner[0, 0] == 1 + tried.argmax()
