import pytest

from schemas.errors import ConfigError
from schemas.levels import LEAST_LEVELS, MOST_LEVELS, check_num_levels


def test_as_many_levels_as_an_int8_holds_can_be_told_apart():
    for number in (LEAST_LEVELS, 8, MOST_LEVELS):
        check_num_levels("levels.num_levels", number)
    assert MOST_LEVELS == 2**7 - 1
    for number in (LEAST_LEVELS - 1, MOST_LEVELS + 1):
        with pytest.raises(ConfigError, match=rf"levels\.num_levels must be in .*, got {number}"):
            check_num_levels("levels.num_levels", number)
