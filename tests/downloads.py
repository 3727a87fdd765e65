"""Downloads from a test's own web server, many at once."""

import asyncio
from typing import Any

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import ALLOWED_HOST, WebServer, response


def settings(server: WebServer, **more: Any) -> FetchConfig:
    """Returns a configuration that lets a server be asked, once."""
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (server.port,),
        "timeout_seconds": 5.0,
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
    """A route that takes its time, and counts how many requests it answers at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._active = 0
        self.most = 0

    async def answer(self, request: Any, writer: asyncio.StreamWriter) -> None:
        """Answers one request."""
        self._active += 1
        self.most = max(self.most, self._active)
        await asyncio.sleep(0.02)
        self._active -= 1
        writer.write(response(self._body))
