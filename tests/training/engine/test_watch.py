import socket
from collections.abc import Iterator

import pytest

from schemas.errors import PeerLost
from training.engine import watch
from training.engine.place import Place
from training.engine.watch import Watch, _Peer

LOST = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
PLACES = [
    Place(rank=0, processes=3, local_rank=0, host="host-a"),
    Place(rank=1, processes=3, local_rank=0, host="host-b"),
    Place(rank=2, processes=3, local_rank=1, host="host-b"),
]


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Watch]]:
    """Three processes' watches, in one that none of them may end."""
    monkeypatch.setattr(watch, "SECONDS_TO_HEAR", 600.0)
    monkeypatch.setattr(watch, "SECONDS_TO_FOLLOW", 600.0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    pairs = [socket.socketpair() for _ in (1, 2)]
    peers = [_Peer(PLACES[n], ours) for n, (ours, _) in enumerate(pairs, start=1)]
    first = Watch(PLACES[0], peers, 180.0)
    others = [
        Watch(PLACES[n], [_Peer(PLACES[0], theirs)], 180.0)
        for n, (_, theirs) in enumerate(pairs, start=1)
    ]
    yield [first, *others]
    for one in [first, *others]:
        one._is_taken.set()
        one._close()


def enter(watches: list[Watch]) -> None:
    for one in watches:
        one.__enter__()


def leave(one: Watch, error: BaseException | None = None) -> None:
    one.__exit__(type(error) if error else None, error, None)


def test_processes_that_end_one_after_the_other_are_not_lost(watches: list[Watch]) -> None:
    enter(watches)
    for one in (watches[1], watches[0], watches[2]):
        leave(one)
    assert not any(one._has_fallen.is_set() for one in watches)


def test_a_killed_process_is_named_to_all_others(watches: list[Watch]) -> None:
    enter(watches)
    watches[2]._is_over = True  # as the kernel ends the connection of a process that is killed
    watches[2]._peers[0].connection.shutdown(socket.SHUT_RDWR)
    for number, host in ((0, "host-a"), (1, "host-b")):
        with pytest.raises(
            PeerLost, match="process 2 on host-b is lost \\(it was killed\\)"
        ) as told:
            leave(watches[number], LOST)
        assert str(told.value).startswith(f"process {number} ({host}):")


def test_one_process_of_a_host_speaks_another_where_it_is_the_one_that_died(
    watches: list[Watch],
) -> None:
    enter(watches)
    watches[1]._is_over = True
    watches[1]._peers[0].connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost, match="process 1 on host-b"):
        leave(watches[2], LOST)
    with pytest.raises(PeerLost, match="process 1 on host-b"):
        leave(watches[0], LOST)


def test_those_that_do_not_speak_end_with_the_same_status(watches: list[Watch]) -> None:
    enter(watches)
    watches[0]._is_over = True
    for peer in watches[0]._peers:
        peer.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(PeerLost, match="process 0 on host-a is lost"):
        leave(watches[1], LOST)
    with pytest.raises(SystemExit) as ended:
        leave(watches[2], LOST)
    assert ended.value.code == 1


def test_a_process_that_fails_tells_the_others_why(watches: list[Watch]) -> None:
    enter(watches)
    leave(watches[1], ValueError("this picture is damaged"))
    with pytest.raises(PeerLost, match="process 1 on host-b failed \\(ValueError: this picture"):
        leave(watches[0], LOST)
    with pytest.raises(PeerLost, match="process 2 \\(host-b\\): process 1 on host-b failed"):
        leave(watches[2], LOST)


def test_an_error_that_all_processes_have_stays_each_ones_own(watches: list[Watch]) -> None:
    enter(watches)
    leave(watches[2], ValueError("the loss is not finite"))
    assert watches[1]._has_fallen.wait(60)
    leave(watches[1], ValueError("the loss is not finite"))  # raises nothing in its place
    leave(watches[0], ValueError("the loss is not finite"))
