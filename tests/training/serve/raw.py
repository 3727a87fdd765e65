"""Requests byte by byte."""

import socket
from typing import Any

from tests.training.serve.conftest import PATIENCE


def raw(server: Any) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def head(*lines: str) -> bytes:
    first = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost"]
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()
