import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from schemas.errors import ConfigError
from training.config import ParallelConfig
from training.engine.launch import free_port
from training.engine.meeting import _meet, open_store, refusal_of
from training.engine.place import Place
from training.engine.watch import Watch


def place(rank: int, processes: int = 2) -> Place:
    """Two processes on each host."""
    hosts = "ab"
    return Place(
        rank=rank, processes=processes, local_rank=rank % 2, host=f"host-{hosts[rank // 2]}"
    )


def said(rank: int, facts: Mapping[str, Any], refusal: str = "") -> dict[str, Any]:
    at = place(rank, 4)
    return {"host": at.host, "local_rank": at.local_rank, "facts": facts, "refusal": refusal}


def test_processes_with_the_same_to_do_are_not_refused() -> None:
    assert refusal_of([said(rank, {"config": {"seed": 1}}) for rank in range(4)]) == ""


def test_a_difference_is_told_with_its_name_both_values_and_hosts() -> None:
    facts = [{"versions": {"torch": "2.14.1"}, "config": {"seed": 1}} for _ in range(4)]
    facts[3] = {"versions": {"torch": "2.13.0"}, "config": {"seed": 1}}
    text = refusal_of([said(rank, found) for rank, found in enumerate(facts)])
    assert "process 0 (host-a) and process 3 (host-b)" in text
    assert 'versions.torch is "2.14.1" and "2.13.0"' in text
    assert "seed" not in text


def test_what_one_process_cannot_do_is_told_of_it_and_what_none_can_is_told_once() -> None:
    everyone = [said(rank, {}, "no such folder") for rank in range(4)]
    assert refusal_of(everyone) == "no such folder"
    one = [said(rank, {}, "no such folder" if rank == 2 else "") for rank in range(4)]
    assert refusal_of(one) == "process 2 (host-b) cannot begin: no such folder"


@pytest.fixture
def meeting_point(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of this machine that the processes of a test meet at."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    yield port


def meet(facts: list[dict[str, Any]], seconds: float = 600.0) -> list[Any]:
    """Returns what a meeting gives to each of two processes, or what it raises."""
    found: list[Any] = [None, None]
    parallel = ParallelConfig(join_seconds=seconds)
    stores = [open_store(place(rank), seconds) for rank in (0, 1)]

    def come(rank: int) -> None:
        deadline = time.monotonic() + seconds
        one = said(rank, facts[rank])
        try:
            found[rank] = _meet(stores[rank], place(rank), one, deadline, parallel)
        except (ConfigError, SystemExit) as error:
            found[rank] = error

    others = [threading.Thread(target=come, args=(rank,)) for rank in range(len(facts))]
    for other in others:
        other.start()
    for other in others:
        other.join()
    return found


def test_processes_that_agree_are_watched_until_both_are_through(meeting_point: int) -> None:
    first, second = meet([{"seed": 1}, {"seed": 1}])
    assert isinstance(first, Watch)
    with first, second:
        pass
    assert [len(first._peers), len(second._peers)] == [1, 1]


def test_processes_that_do_not_agree_all_end_and_the_first_of_the_host_says_why(
    meeting_point: int,
) -> None:
    first, second = meet([{"seed": 1}, {"seed": 2}])
    assert "seed is 1 and 2" in str(first)
    assert isinstance(second, SystemExit)
    assert second.code == 2


def test_who_did_not_come_in_time_is_named(meeting_point: int) -> None:
    first, _ = meet([{"seed": 1}], seconds=1.0)
    assert str(first).startswith("1 of 2 processes came together in time, on host-a; missing: 1.")


def test_a_port_that_another_program_has_is_an_error_that_says_so(meeting_point: int) -> None:
    words = f"another program of host-a has port {meeting_point}"
    taken = socket.create_server(("127.0.0.1", meeting_point))
    with taken, pytest.raises(ConfigError, match=words):
        open_store(place(0), 600.0)
