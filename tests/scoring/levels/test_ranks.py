import numpy as np
import pytest

from schemas.errors import ConfigError
from scoring.config import LevelConfig
from scoring.levels.ranks import (
    cuts_from,
    even_sample,
    parse_rank_mean,
    parts_of,
    positions_of,
    ranks_within,
)


def some_positions(count, seed=0):
    rng = np.random.default_rng(seed)
    value = rng.integers(-3, 3, count).astype(np.float32) / 2  # many ties, -0.0 among them
    value[value == 0] *= rng.choice([-1.0, 1.0], int((value == 0).sum()))
    return value, rng.integers(0, 1 << 63, count).astype(np.uint64)


def test_a_column_is_no_mean_and_a_mean_names_columns_and_weights():
    assert parse_rank_mean("clip_score") is None
    mean = parse_rank_mean("rank_mean:clip_score,negclip:2,0.5")
    assert mean is not None
    assert (mean.names, mean.weights) == (("clip_score", "negclip"), (2.0, 0.5))
    assert parse_rank_mean("rank_mean:a,b").weights == (1.0, 1.0)


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("rank_mean:a", "two or more different columns"),
        ("rank_mean:a,a", "two or more different columns"),
        ("rank_mean:a,", "two or more different columns"),
        ("rank_mean:a,b:1", "must give 2 positive weights"),
        ("rank_mean:a,b:1,0", "must give 2 positive weights"),
        ("rank_mean:a,b:1,inf", "must give 2 positive weights"),
        ("rank_mean:a,b:1,nan", "must give 2 positive weights"),
        ("rank_mean:a,b:1,x", "as in rank_mean:a,b:2,1"),
    ],
)
def test_a_mean_that_is_none_is_refused(spelled, message):
    with pytest.raises(ConfigError, match=message):
        LevelConfig(by=spelled)


def test_ranks_say_nothing_about_other_data():
    with pytest.raises(ConfigError, match="cannot be set together with"):
        LevelConfig(by="rank_mean:a,b", edges_from="old")


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_ranks_are_those_of_a_sort_wherever_the_cuts_fall(parts):
    value, hashes = some_positions(500)
    positions = positions_of(value, hashes)
    cuts = cuts_from(even_sample(positions, 40), parts)
    part = parts_of(positions, cuts)
    ranks = np.empty(500, np.int64)
    for number in range(parts):
        ranks[part == number] = ranks_within(positions[part == number]) + (part < number).sum()
    order = sorted(range(500), key=lambda row: (value[row], int(hashes[row])))
    assert [order[rank] for rank in ranks.tolist()] != order  # not in order by chance
    assert ranks[order].tolist() == list(range(500))
    assert np.bincount(part, minlength=parts).min() > 0.5 * 500 / parts


def test_a_value_that_is_no_number_has_no_position():
    with pytest.raises(ValueError, match="NaN"):
        positions_of(np.array([0.0, np.nan], np.float32), np.zeros(2, np.uint64))


def test_a_mean_weighs_ranks_as_shares_of_all_pairs():
    mean = parse_rank_mean("rank_mean:a,b:3,1")
    found = mean.values(np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), 4)
    assert found.dtype == np.float32
    assert found.tolist() == [0.3125, 0.4375, 0.5625, 0.6875]
