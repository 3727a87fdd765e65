"""Downloads from a test's own web server, many at once."""

import asyncio
import time
from typing import Any

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import ALLOWED_HOST, WebServer, response

PATIENCE = 60.0
"""Seconds in which even a busy machine answers."""


def settings(server: WebServer, **more: Any) -> FetchConfig:
    """Returns a configuration that lets a server be asked, once."""
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (server.port,),
        "timeout_seconds": PATIENCE,
        "retries": 0,
    }
    return FetchConfig(**{**values, **more})


def download(
    config: FetchConfig, *urls: str, memory: HostMemory | None = None
) -> list[RejectReason | None]:
    """Returns why each URL was not taken, None where it was; all asked at once."""

    async def ask_one(downloader: Downloader, url: str) -> RejectReason | None:
        try:
            downloader.release(await downloader.download(url))
        except SampleRejected as rejected:
            return rejected.reason
        return None

    async def ask() -> list[RejectReason | None]:
        downloader = Downloader(config, memory or HostMemory(config))
        try:
            return await asyncio.gather(*(ask_one(downloader, url) for url in urls))
        finally:
            await downloader.close()

    return asyncio.run(ask())


class AnswersAtOnce:
    """A route that counts how many requests it answers at once.

    The first is answered at once, since a host that is not known yet gets no second one before.
    Until as many are asked at once as are allowed, an answer waits for the next request as long as
    a slow machine needs to send one; then for a moment, in which one too many would be seen.
    """

    def __init__(self, body: bytes, allowed: int) -> None:
        self._body = body
        self._allowed = allowed
        self._active = 0
        self._asked = 0
        self.most = 0

    async def answer(self, request: Any, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        self._active += 1
        self._asked += 1
        self.most = max(self.most, self._active)
        deadline = time.monotonic() + PATIENCE / 2
        while self._asked > 1 and self.most < self._allowed and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        self._active -= 1
        writer.write(response(self._body))
