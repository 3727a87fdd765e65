"""Pictures of hosts that are allowed."""

import asyncio
import io

import pytest
from PIL import Image

from schemas.addresses import AddressGuard
from tests.training.serve.conftest import LIMITS
from tests.web_server import ALLOWED_HOST, FORBIDDEN_HOST, WebServer
from training.serve.errors import ApiError
from training.serve.pictures import RemotePictures, open_picture


def remote(web_server: WebServer) -> RemotePictures:
    """Returns what may fetch from one host, whose network is taken for a public one."""
    guard = AddressGuard(("127.0.0.2/32",), (web_server.port,))
    return RemotePictures((ALLOWED_HOST, FORBIDDEN_HOST), LIMITS, guard)


def test_a_picture_of_an_allowed_host_is_fetched(web_server: WebServer) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30), "red").save(buffer, "PNG")
    url = web_server.serve("/a.png", buffer.getvalue())
    data = asyncio.run(remote(web_server).fetch(url))
    assert open_picture(data, LIMITS).getpixel((0, 0)) == (255, 0, 0)


def test_whatever_else_a_host_does_ends_in_a_sentence(
    web_server: WebServer,
) -> None:
    inside = web_server.serve("/inside", b"secret")
    web_server.serve("/moved", b"", {"Location": inside}, 302)
    web_server.serve("/long", b"x" * (LIMITS.image_bytes + 1))
    for url, said in (
        (web_server.url("/moved"), "redirects are not followed"),
        (web_server.url("/long"), "bytes"),
        (web_server.url("/gone"), "answered 404"),
        (web_server.url("/inside", FORBIDDEN_HOST), "not a public address"),
        (web_server.url("/inside", "127.0.0.4"), "not allowed here"),
        ("http://127.0.0.2:1/", "port 1"),
    ):
        with pytest.raises(ApiError, match=said):
            asyncio.run(remote(web_server).fetch(url))
    assert "/inside" not in [request.path for request in web_server.requests]
