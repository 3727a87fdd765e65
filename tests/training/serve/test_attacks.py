"""What people send who mean harm, or do not know better."""

import base64
import json
import socket
import struct
import zlib
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import openai
import pytest

from schemas.errors import ConfigError
from tests.training.serve.conftest import LIMITS, PATIENCE, client_of, get, serving, turn
from training.parts import Assembled
from training.serve.commands import Serve
from training.serve.connections import Doorkeeper
from training.serve.run import api_key, listen


def png(width: int, height: int) -> bytes:
    """Returns a PNG that says it has so many pixels, and is small."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10**6), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def as_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def with_image(url: str) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"messages": [{"role": "user", "content": [part]}]}


def with_text(text: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text}]}


BAD = {
    "a bomb": (with_image(as_url(png(60_000, 60_000))), "pixels"),
    "more pixels than are allowed": (with_image(as_url(png(200, 100))), "10,000 are allowed"),
    "a picture that ends early": (with_image(as_url(png(90, 90)[:60])), "cannot be read"),
    "no picture": (
        with_image(as_url(b"<svg onload=alert(1)>", "svg+xml")),
        "none that can be read",
    ),
    "broken base64": (with_image("data:image/png;base64,a$b"), "base64 cannot be read"),
    "no base64": (with_image("data:image/png,abc"), "data:image/jpeg;base64"),
    "no image": (with_image("data:text/html;base64,aaaa"), "data:image/jpeg;base64"),
    "a long picture": (with_image("data:image/png;base64," + "A" * 2**19), "262,144 bytes"),
    "a URL": (with_image("https://example.org/a.png"), "--allow-hosts"),
    "a file": (with_image("file:///etc/passwd"), "--allow-hosts"),
    "a path": (with_image("/etc/passwd"), "--allow-hosts"),
    "too many pictures": ({"messages": [turn("a"), turn("b"), turn("c")]}, "may have 2 images"),
    "a wrong role": (with_text("hi", "robot"), "messages.0.role"),
    "a tool": (with_text("hi", "tool"), "messages.0.role"),
    "the last word is the model's": (with_text("hi", "assistant"), "must be the user's"),
    "no message": ({"messages": []}, "messages"),
    "a number for a message": (with_text(5), "messages.0.content"),
    "a picture of the system's": (
        {"messages": [{**turn("a"), "role": "system"}, *with_text("hi")["messages"]]},
        "belong to the user's",
    ),
    "a placeholder": (with_text("<image><image> what?"), "must not hold <image>"),
    "another placeholder": (with_text("<align>"), "must not hold <align>"),
    "huge max_tokens": ({"max_tokens": 10**12}, "max_tokens must be in 1..200"),
    "no max_tokens": ({"max_tokens": 0}, "max_tokens must be in 1..200"),
    "too many answers": ({"n": 100}, "n must be in 1..3"),
    "heat": ({"temperature": 9}, "temperature"),
    "NaN": ({"temperature": float("nan")}, "temperature"),
    "no odds": ({"top_p": 0}, "top_p"),
    "an empty stop": ({"stop": ""}, "none of them empty"),
    "five stops": ({"stop": list("abcde")}, "stop"),
    "a seed of 100 bits": ({"seed": 2**100}, "seed"),
    "a level that is not there": ({"alignment_level": 9}, "must be in 1..4"),
    "a mode that is not there": ({"alignment_mode": "wild"}, "adaptive, local, global, average"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "a text longer than the model reads": (
        with_text("what is this? " * 400),
        "this model reads 256",
    ),
    "another model": ({"model": "gpt-4"}, "no model 'gpt-4'"),
}


@pytest.mark.parametrize(("body", "said"), BAD.values(), ids=BAD.keys())
def test_what_is_not_taken_is_refused_in_a_sentence_in_openais_form(
    server: Any, body: dict[str, Any], said: str
) -> None:
    whole = {"model": "tiny", **with_text("hi"), "max_tokens": 2, **body}
    reply = post(server, json.dumps(whole))
    error = reply.json()["error"]
    assert 400 <= reply.status_code < 500
    assert said in f"{error['param']} {error['message']}"
    assert error["type"] == "invalid_request_error" and set(error) >= {"message", "code", "param"}


def post(server: Any, body: str | bytes, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.address}/v1/chat/completions",
        content=body,
        timeout=PATIENCE,
        headers={"Content-Type": "application/json", **headers},
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"model": 1}'])
def test_what_is_no_request_is_refused(server: Any, body: bytes) -> None:
    reply = post(server, body)
    assert reply.status_code == 400 and reply.json()["error"]["message"]


def test_pages_of_elsewhere_cannot_ask_a_local_server(server: Any) -> None:
    whole = json.dumps({"model": "tiny", **with_text("hi")})
    assert post(server, whole, **{"Content-Type": "text/plain"}).status_code == 415
    assert post(server, whole, Host="evil.example").status_code == 403
    assert get(f"{server.address}/v1/models", headers={"Host": "a.b"}).status_code == 403
    assert get(f"{server.address}/health", headers={"Host": "localhost:1"}).status_code == 200


def test_what_is_not_there_is_an_error_in_openais_form(server: Any) -> None:
    assert get(f"{server.address}/v1/nothing").json()["error"]["type"]
    assert get(f"{server.address}/v1/chat/completions").status_code == 405


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


def raw(server: Any) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def head(*lines: str) -> bytes:
    first = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost"]
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


def test_a_request_that_does_not_arrive_is_not_waited_for(parts: Assembled) -> None:
    hasty = replace(LIMITS, body_seconds=0.2)
    with serving(parts, limits=hasty) as server, raw(server) as sender:
        sender.sendall(head("Content-Length: 100") + b"{")
        assert b" 408 " in sender.recv(4096)


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


def test_others_are_let_in_with_a_key_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNGPT_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(ConfigError, match="ALIGNGPT_API_KEY"):
            api_key(Serve(model="m", host=host))
    for host in ("127.0.0.1", "localhost", "::1", "127.9.9.9"):
        assert api_key(Serve(model="m", host=host)) == ""
    assert api_key(Serve(model="m", host="0.0.0.0", api_key="k")) == "k"
    monkeypatch.setenv("ALIGNGPT_API_KEY", "from the environment")
    assert api_key(Serve(model="m", host="0.0.0.0")) == "from the environment"


def test_an_address_that_is_taken_is_said() -> None:
    with listen(Serve(model="m", port=0)) as taken, pytest.raises(ConfigError, match="--port"):
        listen(Serve(model="m", port=taken.getsockname()[1]))


def test_a_picture_of_a_host_that_leads_home_is_never_fetched(parts: Assembled) -> None:
    """The host is allowed, its address is private."""
    with socket.create_server(("127.0.0.1", 0)) as home:
        port = home.getsockname()[1]
        home.settimeout(0)
        with serving(parts, allow_hosts=("127.0.0.1", "localhost", "[::1]")) as server:
            for url in (
                f"http://127.0.0.1:{port}/a.png",
                "http://127.0.0.1/a.png",
                "http://localhost/a.png",
                "https://example.org/a.png",
                "ftp://localhost/a.png",
                "http://2130706433/a.png",
            ):
                whole = {"model": "tiny", **with_image(url)}
                error = post(server, json.dumps(whole)).json()["error"]
                assert error["code"] == "invalid_image", url
        with pytest.raises(BlockingIOError):
            home.accept()
