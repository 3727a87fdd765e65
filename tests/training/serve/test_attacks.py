"""What people send who mean harm, or do not know better."""

import base64
import json
import socket
import struct
import zlib
from typing import Any

import httpx
import pytest

from tests.training.serve.conftest import PATIENCE, get, serving, turn
from training.parts import Assembled


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
