"""A real web server on loopback addresses that serves pictures and plays every misbehaviour."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from training.engine.launch import free_port

ALLOWED_HOST = "127.0.0.2"
FORBIDDEN_HOST = "127.0.0.3"


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    host: str
    """The address that was connected to."""


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class WebServer:
    """Serves what its routes say on one port of several loopback addresses."""

    hosts: tuple[str, ...] = (ALLOWED_HOST, FORBIDDEN_HOST)
    tls: ssl.SSLContext | None = None
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    _routes: dict[str, Handler] = field(default_factory=dict)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _handling: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str, host: str = ALLOWED_HOST) -> str:
        """Returns the URL of a path."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(
        self, path: str, body: bytes, headers: dict[str, str] | None = None, status: int = 200
    ) -> str:
        """Answers a path with a body; returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(response(body, headers, status))

        return self.route(path, handler)

    def raw(self, path: str, answer: bytes) -> str:
        """Answers a path with bytes as they are and closes the connection; returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await writer.drain()
            writer.close()

        return self.route(path, handler)

    def drip(self, path: str, answer: bytes, pause_seconds: float) -> str:
        """Answers a path byte by byte; returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            for place in range(len(answer)):
                writer.write(answer[place : place + 1])
                await writer.drain()
                await asyncio.sleep(pause_seconds)

        return self.route(path, handler)

    def hang(self, path: str, start: bytes = b"") -> str:
        """Answers a path with the start of an answer and then nothing; returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(start)
            while self._routes.get(path) is handler:
                await asyncio.sleep(0.1)
            writer.close()

        return self.route(path, handler)

    def hang_up(self, path: str) -> None:
        """Ends what hangs on a path, unanswered; from now on nothing is there."""
        del self._routes[path]

    def endless(self, path: str, start: bytes, chunk: bytes) -> str:
        """Answers a path with a body that never ends; returns its URL."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(start)
            while True:
                writer.write(chunk)
                await writer.drain()

        return self.route(path, handler)

    def sequence(self, path: str, answers: list[bytes]) -> str:
        """Answers a path with each answer in turn, the last one for ever; returns its URL."""
        left = list(answers)

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(left.pop(0) if len(left) > 1 else left[0])

        return self.route(path, handler)

    def redirect(self, path: str, location: str, status: int = 302) -> str:
        """Sends a path elsewhere; returns its URL."""
        return self.serve(path, b"", {"Location": location}, status)

    def route(self, path: str, handler: Handler) -> str:
        """Answers a path by a function; returns its URL."""
        self._routes[path] = handler
        return self.url(path)

    def paths(self, host: str | None = None) -> list[str]:
        """Returns what was asked, in order, of one address or of all."""
        return [request.path for request in self.requests if host in (None, request.host)]

    def forget(self) -> None:
        """Drops all routes and all that is known of earlier requests."""
        self._routes.clear()
        self.requests.clear()
        self.connections = 0

    def start(self) -> "WebServer":
        """Begins to serve, in a thread."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(120), "the web server did not start"
        return self

    def stop(self) -> None:
        """Ends the thread and all connections."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        servers = []
        for host in self.hosts:
            server = await asyncio.start_server(self._begin, host, self.port, ssl=self.tls)
            self.port = server.sockets[0].getsockname()[1]
            servers.append(server)
        ready.set()
        await self._stopped.wait()
        for server in servers:
            server.close()
        writers = list(self._writers)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:  # also of those cancelled before they began, or with bytes to send
            writer.transport.abort()
        await asyncio.sleep(0)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.get_running_loop().create_task(self._handle(reader, writer))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await _read_request(reader, writer)) is not None:
                self.requests.append(request)
                await self._answer(request, writer)
                await writer.drain()
                if writer.is_closing() or request.headers.get("connection") == "close":
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        handler = self._routes.get(request.path)
        if handler is None:
            writer.write(response(b"nothing here", status=404))
        else:
            await handler(request, writer)


async def _read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    try:
        first_byte = await reader.readexactly(1)
        if first_byte == b"\x16":
            writer.write(response(b"this is no TLS", status=400))
            return None
        head = (first_byte + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    pairs = [line.split(": ", 1) for line in lines if ": " in line]
    headers = {name.lower(): value for name, value in pairs}
    return Request(method, path, headers, writer.get_extra_info("sockname")[0])


def response(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> bytes:
    """Returns an HTTP/1.1 answer, its length declared unless the headers do."""
    values = {"Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Because", *(f"{name}: {value}" for name, value in values.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def unused_port(host: str = ALLOWED_HOST) -> int:
    """Returns a port of a loopback address on which nobody listens."""
    return free_port(host)
