"""A tiny model behind a real address."""

import base64
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from training.parts import Assembled
from training.serve.commands import Limits, Serve
from training.serve.run import Server, listen

PATIENCE = 120.0
"""Seconds in which even a busy machine answers."""

get = partial(httpx.get, timeout=PATIENCE)

LIMITS = Limits(
    body_bytes=2**20, image_bytes=2**18, image_pixels=10_000, images=2, new_tokens=200, answers=3
)


class Reachable(Server):
    """A server that knows where it is reached."""

    address: str


@contextmanager
def serving(parts: Assembled, **settings: Any) -> Iterator[Reachable]:
    """Serves a model for the length of a block; its address is `server.address`."""
    key = settings.pop("key", "")
    given = {"port": 0, "name": "tiny", "page": False, "limits": LIMITS, **settings}
    command = Serve(model="nowhere", **given)
    listening = listen(command)
    server = Reachable(parts, command, key)
    server.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=lambda: server.run(listening), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(timeout=60)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(parts: Assembled) -> Iterator[Any]:
    """Returns a server that all tests of the folder may ask."""
    with serving(parts) as found:
        yield found


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    """Returns the official client of the server."""
    with client_of(server) as found:
        yield found


def client_of(server: Any, key: str = "none") -> openai.OpenAI:
    address = f"{server.address}/v1"
    return openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=PATIENCE)


@pytest.fixture
def ask(client: openai.OpenAI) -> Callable[..., Any]:
    """Returns a function that asks about a picture."""

    def asked(text: str = "what is this?", images: int = 1, **settings: Any) -> Any:
        given = {"model": "tiny", "messages": [turn(text, images)], "temperature": 0, **settings}
        return client.chat.completions.create(**given)

    return asked


def turn(text: str, images: int = 1) -> Any:
    """Returns a user's message with pictures."""
    colours = ("red", "blue", "green")
    shown = [
        {"type": "image_url", "image_url": {"url": data_url(colour)}} for colour in colours[:images]
    ]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def data_url(colour: str = "red", size: tuple[int, int] = (20, 30)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
