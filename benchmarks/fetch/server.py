"""The web of the benchmark of fetching: photographs on many hosts of this machine, some hanging."""

import asyncio
import io
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

HOSTS = 200
HANG_EVERY = 100

WEB_HOSTS = 2000
SLOW_SECONDS = 8.0
HOSTS_OF_A_NET = 200


def web_host(number: int) -> str:
    """Returns the address of one of the hosts of the part `web`."""
    return f"127.9.{number // HOSTS_OF_A_NET}.{number % HOSTS_OF_A_NET}"


def hangs(number: int) -> bool:
    """Returns whether a host of the other parts never answers where answers take time."""
    return number % HANG_EVERY == HANG_EVERY - 1


def is_hanging(number: int) -> bool:
    """Returns whether a host of the part `web` never answers: one in ten."""
    return number % 10 == 7


def is_slow(number: int) -> bool:
    """Returns whether a host of the part `web` takes `SLOW_SECONDS` for a picture: one in 20."""
    return number % 20 == 3


def photographs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Returns JPEGs of a size: parts of two real photographs. Of 800x600 they have 120 KB."""
    from sklearn.datasets import load_sample_images  # seconds that no side should pay for

    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = np.random.default_rng(0)
    files = []
    for number in range(count):
        source = sources[number % len(sources)]
        width = int(generator.integers(400, source.width))
        height = width * 3 // 4
        left = int(generator.integers(0, source.width - width + 1))
        top = int(generator.integers(0, max(1, source.height - height + 1)))
        part = source.crop((left, top, left + width, top + height)).resize(
            size, Image.Resampling.BICUBIC
        )
        file = io.BytesIO()
        part.save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


class PhotoServer(asyncio.Protocol):
    """Answers every GET with the photograph that its path numbers."""

    files: ClassVar[list[bytes]] = []
    was_asked: ClassVar[bool] = False
    delay_seconds = 0.0
    is_web = False

    def connection_made(self, transport: Any) -> None:
        """Remembers whom to answer."""
        self._transport = transport
        self._received = b""
        net, last = map(int, transport.get_extra_info("sockname")[0].split(".")[2:])
        number = net * HOSTS_OF_A_NET + last
        self._is_slow = self.is_web and is_slow(number)
        self._hangs = self.delay_seconds > 0 and hangs(last)
        if self.is_web:
            self._hangs = is_hanging(number)

    def data_received(self, data: bytes) -> None:
        """Answers each whole request, after the delay; says when the first one came."""
        if not PhotoServer.was_asked:
            PhotoServer.was_asked = True
            print(time.time(), flush=True)
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            if not self._hangs:
                path = head.split(b" ", 2)[1]
                is_late = self._is_slow and path.endswith(b".jpg")
                delay = SLOW_SECONDS if is_late else self.delay_seconds
                asyncio.get_running_loop().call_later(delay, self._answer, path)

    def _answer(self, path: bytes) -> None:
        name = path.rsplit(b"/", 1)[-1].removesuffix(b".jpg")
        if name.isdigit():
            body, status = self.files[int(name) % len(self.files)], b"200 OK"
        else:
            body, status = b"", b"404 Not Found"
        head = b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(head % (status, len(body)) + body)


def serve(folder: Path, delay_seconds: float, *, is_web: bool = False) -> None:
    """Serves the photographs in a folder for ever; prints the port, and when it is asked first."""

    async def run() -> None:
        PhotoServer.files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        PhotoServer.delay_seconds, PhotoServer.is_web = delay_seconds, is_web
        loop = asyncio.get_running_loop()
        server = await loop.create_server(PhotoServer, "0.0.0.0", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())
