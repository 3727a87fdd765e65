"""What stands before every route."""

from dataclasses import replace
from typing import Any

import openai
import pytest

from tests.training.serve.conftest import LIMITS, PATIENCE, client_of, get, serving, turn
from tests.training.serve.raw import head, raw
from training.parts import Assembled
from training.serve.guards import KeyGuard, _host_of


def test_a_gigabyte_is_refused_before_it_is_read(server: Any) -> None:
    with raw(server) as sender:
        sender.sendall(head("Content-Length: 1073741824") + b"{")
        assert b" 413 " in sender.recv(4096)
    with raw(server) as sender:
        sender.sendall(head("Transfer-Encoding: chunked"))
        piece = b"10000\r\n" + b" " * 2**16 + b"\r\n"
        sent = 0
        answer = b""
        sender.setblocking(True)
        while not answer and sent < 2**30:
            try:
                sender.sendall(piece)
                sent += 2**16
                sender.settimeout(0.001)
                answer = sender.recv(4096)
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                break
            finally:
                sender.settimeout(PATIENCE)
    assert sent < 2**25


def test_a_request_that_does_not_arrive_is_not_waited_for(parts: Assembled) -> None:
    hasty = replace(LIMITS, body_seconds=0.2)
    with serving(parts, limits=hasty) as server, raw(server) as sender:
        sender.sendall(head("Content-Length: 100") + b"{")
        assert b" 408 " in sender.recv(4096)


def test_a_server_with_a_key_answers_nobody_without_it(parts: Assembled) -> None:
    with serving(parts, key="secret") as server:
        assert get(f"{server.address}/health").status_code == 200
        assert get(f"{server.address}/metrics").status_code == 401
        for key in ("none", "secre", "secrets", "sécret"):
            header = {"Authorization": f"Bearer {key}".encode()}
            reply = get(f"{server.address}/v1/models", headers=header)
            assert reply.json()["error"]["code"] == "invalid_api_key"
        with client_of(server, "secret") as client:
            assert client.models.list().data
        with client_of(server, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="tiny", messages=[turn("hi")])


@pytest.mark.parametrize(
    ("header", "name"),
    [("localhost:8000", "localhost"), ("[::1]:80", "::1"), ("Example.ORG", "example.org"),
     ("", ""), ("[", "")],
)  # fmt: skip
def test_the_name_that_is_asked_for_is_read_without_its_port(header: str, name: str) -> None:
    assert _host_of(header) == name


def test_a_key_is_compared_whole() -> None:
    guard = KeyGuard("sécret")
    assert guard.is_key("sécret") and guard.is_key(" sécret ")
    assert not any(map(guard.is_key, ("", "sécre", "sécrets", "secret")))
