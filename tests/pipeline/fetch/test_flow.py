"""What rows take while they flow is told apart from the beginning and the end."""

import pytest

from pipeline.fetch import flow
from pipeline.fetch.flow import MAX_SAMPLES, Flow


class Clocks:
    """The clock and the count of the cores, set by hand."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def perf_counter(self) -> float:
        return self.seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    clocks = Clocks()
    monkeypatch.setattr(flow, "time", clocks)
    monkeypatch.setattr(flow, "cpu_seconds", lambda: clocks.cpu)
    return clocks


@pytest.mark.parametrize("rows", [40, 500, 5000, 100_000])
def test_the_pace_is_that_of_the_rows_between_a_slow_beginning_and_a_slow_end(
    clocks: Clocks, rows: int
) -> None:
    flowing = Flow(connections=16)
    clocks.seconds, clocks.cpu = 7.0, 9.0
    for row in range(rows):
        is_slow = row < 4 or row >= rows - 4
        clocks.seconds += 2.0 if is_slow else 0.001
        clocks.cpu += 0.5 if is_slow else 0.003
        flowing.count()
    found = flowing.time()
    assert rows / 8 <= found.rows <= rows
    assert found.seconds == pytest.approx(0.001 * found.rows)
    assert found.cpu_seconds == pytest.approx(0.003 * found.rows)
    assert len(flowing._moments) <= MAX_SAMPLES


@pytest.mark.parametrize("rows", [0, 1, 31])
def test_rows_that_were_all_asked_at_the_beginning_have_no_pace(clocks: Clocks, rows: int) -> None:
    flowing = Flow(connections=16)
    for _ in range(rows):
        flowing.count()
    assert flowing.time().rows == 0
