"""What stands before every route: who is asked for, how much is sent, how long it takes."""

import asyncio
import hmac
from urllib.parse import urlsplit

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from training.serve.commands import Serve
from training.serve.errors import ApiError, error_body

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""What a browser on this machine calls it. Another name that leads here is a trick: a page of
elsewhere whose name was turned to this machine (DNS rebinding)."""


class Gate:
    """Refuses requests that call a local server by a strange name, and bodies without end."""

    def __init__(self, app: ASGIApp, command: Serve) -> None:
        self._app, self._limits = app, command.limits
        self._names = LOCAL_NAMES | {command.host.lower()} if command.is_local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on what may pass."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if self._names is not None and _host_of(headers.get(b"host", "")) not in self._names:
            said = error_body(403, "this server answers to the names of its own machine alone")
            await JSONResponse(said, 403)(scope, receive, send)
            return
        length = headers.get(b"content-length", "")
        announced = int(length) if length.isdecimal() else 0
        await self._app(scope, self._guarded(receive, announced), send)

    def _guarded(self, receive: Receive, announced: int) -> Receive:
        """Returns what receives a body, up to its limits in bytes and time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.body_seconds
        seen, is_whole = 0, False

        async def guarded() -> Message:
            nonlocal seen, is_whole
            if is_whole:
                return await receive()
            if announced > self._limits.body_bytes:
                raise self._too_large()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the request took too long to arrive") from error
            seen += len(message.get("body", b""))
            if seen > self._limits.body_bytes:
                raise self._too_large()
            is_whole = not message.get("more_body", False)
            return message

        return guarded

    def _too_large(self) -> HTTPException:
        most = self._limits.body_bytes
        return HTTPException(413, f"a request may have {most:,} bytes")


def _host_of(header: str) -> str:
    """Returns the name by which a server is asked, without the port."""
    try:
        return urlsplit("//" + header).hostname or ""
    except ValueError:
        return ""


class KeyGuard:
    """Asks for the key of the server, where it has one."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __call__(self, request: Request) -> None:
        """Raises `ApiError` unless the request brings the key."""
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        if self._key and not (kind.lower() == "bearer" and self.is_key(key)):
            raise ApiError(
                401,
                "this server needs its key: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
            )

    def is_key(self, key: str) -> bool:
        """Returns whether this is the key, in a time that says nothing about it."""
        return hmac.compare_digest(key.strip().encode(), self._key)
