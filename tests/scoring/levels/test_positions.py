import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scoring.levels.positions import ordered_codes, position_of, score_of


@given(hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_codes_order_as_the_scores_do(score):
    codes = ordered_codes(score).astype(np.int64)
    assert (
        np.sign(codes[:, None] - codes[None])
        == (score[:, None] > score) * 1 - (score[:, None] < score)
    ).all()
    assert [score_of(int(code) << 64) for code in codes] == score.tolist()


def test_positions_order_by_score_then_hash():
    places = [(-1.0, 5), (-1.0, 6), (-0.0, 3), (0.0, 4), (1e-45, 0), (0.3, 2**64 - 1), (0.4, 0)]
    positions = [position_of(*place) for place in places]
    assert positions == sorted(positions)
