import gc
import resource
import sys
from collections.abc import Iterator

import pytest

from pipeline.fetch.process_settings import (
    FILES_PER_CONNECTION,
    SECONDS_OF_A_TURN,
    SPARE_FILES,
    asking,
    connections_allowed,
    give_way,
    settings_of_fetching,
)


@pytest.fixture
def open_files() -> Iterator[tuple[int, int]]:
    """Gives the soft and hard limit of open files, and puts them back."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_low_soft_limit_is_raised(open_files: tuple[int, int]) -> None:
    _, hard = open_files
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    assert connections_allowed(800) == 800
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 800 + SPARE_FILES < raised == min(hard, FILES_PER_CONNECTION * 800 + SPARE_FILES)


def test_a_limit_that_is_high_enough_stays(open_files: tuple[int, int]) -> None:
    assert connections_allowed(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == open_files


@pytest.mark.parametrize("granted", [1024, 400])
def test_what_the_system_does_not_grant_costs_connections(
    granted: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The hard limit itself cannot be put back once it was lowered.
    monkeypatch.setattr("resource.getrlimit", lambda _: (granted, granted))
    allowed = connections_allowed(2000)
    assert 0 < allowed < granted
    assert f"{allowed} connections instead of 2000" in caplog.text
    assert "ulimit -Hn" in caplog.text


def test_garbage_and_turns_are_as_before_once_the_last_fetch_is_done() -> None:
    gc.unfreeze()
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    turn = sys.getswitchinterval()
    with settings_of_fetching():
        with settings_of_fetching():
            assert gc.get_threshold()[0] > before[0]
        assert gc.get_threshold()[0] > before[0]
        assert gc.get_freeze_count() > frozen
        assert sys.getswitchinterval() < turn
    assert gc.get_threshold() == before
    assert sys.getswitchinterval() == turn
    assert gc.get_freeze_count() <= frozen


def test_what_was_set_aside_before_a_fetch_stays_so() -> None:
    gc.freeze()
    usual = gc.get_threshold()[0]
    with settings_of_fetching():
        assert gc.get_threshold()[0] > usual
    assert gc.get_freeze_count() > 0


def test_who_works_gives_way_only_while_hosts_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pipeline.fetch.process_settings.time.sleep", waits.append)
    with settings_of_fetching():
        give_way()
        assert waits == []
        with asking(), asking():
            give_way()
        assert waits == [SECONDS_OF_A_TURN]
        give_way()
    assert len(waits) == 1
