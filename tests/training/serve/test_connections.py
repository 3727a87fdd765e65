"""Connections that say nothing, or too slowly."""

from dataclasses import replace
from functools import partial

import pytest

from tests.training.serve.conftest import LIMITS, client_of, serving
from tests.training.serve.raw import raw
from training.parts import Assembled
from training.serve.connections import Doorkeeper


def test_connections_that_say_nothing_keep_nobody_out(parts: Assembled) -> None:
    """With room for 32: 300 that say nothing, and one half a head, and then one who asks."""
    with serving(parts, limits=replace(LIMITS, connections=32)) as server:
        silent = [raw(server) for _ in range(300)]
        silent[-1].sendall(b"POST /v1/chat")
        with client_of(server) as client:
            assert client.models.list().data[0].id == "tiny"
        assert silent[0].recv(1) == b""
        for one in silent:
            one.close()


def test_a_head_that_does_not_end_ends_the_connection(
    parts: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.serve.run.Doorkeeper", partial(Doorkeeper, seconds=3.0))
    with serving(parts) as server:
        with raw(server) as silent:
            assert silent.recv(1) == b""
        with raw(server) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
            said = b""
            while piece := slow.recv(4096):
                said += piece
            assert said.count(b"200 OK") == 1
