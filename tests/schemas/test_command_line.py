"""What both commands say to people."""

import pytest

from schemas.command_line import format_seconds


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_a_length_of_time_is_for_people(seconds, shown):
    assert format_seconds(seconds) == shown
