"""How much memory this process takes."""

import mmap
from pathlib import Path

import pytest

from training.engine.memory import resident_bytes

MUCH = 64 * 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_what_is_written_to_is_held():
    before = resident_bytes()
    with mmap.mmap(-1, MUCH) as held:  # an array could be given what was freed before
        held.write(b"1" * MUCH)
        after = resident_bytes()
    assert before is not None and after is not None
    assert before > MUCH / 8  # Python and numpy alone take more
    assert after - before > MUCH / 2


def test_a_system_that_does_not_say_is_not_guessed(monkeypatch):
    def absent(*_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    assert resident_bytes() is None
