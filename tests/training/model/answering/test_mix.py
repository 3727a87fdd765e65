"""How an answer mixed the levels, in numbers and bars."""

import pytest

from tests.training.model.tiny_models import model_config
from training.model.answering.mix import bars, mixed_levels
from training.model.answering.prompt import Alignment

GATE = [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("mode", "alignment", "gate", "mixed"),
    [
        ("adaptive", Alignment(), GATE, [*GATE, 1.0]),
        ("adaptive", Alignment(mode="local"), GATE, [*GATE, 0.0]),
        ("adaptive", Alignment(mode="global"), None, [0.0, 0.0, 0.0, 1.0]),
        ("average", Alignment(), None, [1 / 3, 1 / 3, 1 / 3, 1.0]),
        ("adaptive", Alignment(level=2), None, [0.0, 1.0, 0.0, 0.0]),
        ("none", Alignment(), None, []),
    ],
)
def test_a_mode_gives_each_level_its_weight(mode, alignment, gate, mixed):
    assert mixed_levels(model_config(alignment_mode=mode), alignment, gate) == mixed


def test_a_bar_is_as_long_as_its_weight():
    lines = bars([0.5, 0.0, 1.0]).splitlines()
    assert [line.count("█") for line in lines] == [12, 0, 24]
    assert [line.split()[-1] for line in lines] == ["0.500", "0.000", "1.000"]
    assert [line.startswith("level 3 (global)") for line in lines] == [False, False, True]
    assert len({len(line) for line in lines}) == 1
    assert bars([]) == ""
