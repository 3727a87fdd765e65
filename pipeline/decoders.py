"""A pool of decoding processes: all cores at work, and a crash costs one image."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from pipeline.decoder_process import FRAME, Handling, frame_head, read_frame, start_message
from schemas.errors import RejectReason, SampleRejected
from scoring.config import ImageSettings

REASONS = {reason.value: reason for reason in RejectReason}

START_SECONDS = 120
"""Time that a process may take to load its libraries, on a slow and busy disk too."""

HELD_AT_ONCE = 8
"""Images that a process is given: while it decodes one, the next is there already."""

SOCKET_BYTES = 1 << 20
"""What the system is asked to hold of what was sent to a process; it may grant less."""


class DecoderStartError(Exception):
    """No process could be started that decodes: the run is at fault, not an image."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image ready to be stored, and what is known of its source."""

    encoded: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    pixel_hash: str
    sha256: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A file that waits for its answer."""

    data: bytes | bytearray
    head: bytes
    answer: asyncio.Future[tuple[dict[str, Any], bytes]]


class DecoderPool:
    """Decodes in processes of its own, within one event loop; close it when done.

    A process that crashes, hangs or outgrows its memory is replaced; the image that it was at is
    rejected as `decoder_crashed`. One that cannot even start is no image's fault: that is raised.
    """

    def __init__(self, settings: ImageSettings, processes: int, timeout_seconds: float) -> None:
        message = start_message(settings, timeout_seconds)
        count = processes or len(os.sched_getaffinity(0))
        self._waiting: deque[_Job] = deque()
        self._is_closed = False
        self._decoders = [_Decoder(message, self._hand_out, self._waiting) for _ in range(count)]

    @property
    def process_ids(self) -> list[int]:
        """The processes that are there now."""
        return [one.process.pid for one in self._decoders if one.process is not None]

    async def decode(
        self,
        data: bytes | bytearray,
        expected_hash: str | None,
        handling: Handling = Handling.FETCHED,
    ) -> DecodedImage:
        """Returns the image, checked, resized and encoded.

        Raises:
            SampleRejected: if it is unusable.
            DecoderStartError: if nobody could look at it.
        """
        head = frame_head({"expected_hash": expected_hash, "handling": handling.value}, len(data))
        job = _Job(data, head, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._hand_out()
        header, encoded = await job.answer
        if "reason" in header:
            raise SampleRejected(REASONS[header["reason"]], header["detail"])
        return DecodedImage(encoded=encoded, **header)

    def _hand_out(self) -> None:
        """Gives what waits to those that hold least."""
        while self._waiting and not self._is_closed:
            decoder = min(self._decoders, key=lambda one: len(one.held))
            if len(decoder.held) == HELD_AT_ONCE:
                return
            decoder.take(self._waiting.popleft())

    async def close(self) -> None:
        """Ends the processes."""
        self._is_closed = True
        await asyncio.gather(*(decoder.close() for decoder in self._decoders))


class _Decoder(asyncio.Protocol):
    """One process, started when it is needed first and replaced when it ends."""

    def __init__(
        self, message: dict[str, Any], on_free: Callable[[], None], given_back: deque[_Job]
    ) -> None:
        self._message, self._on_free, self._given_back = message, on_free, given_back
        self.held: deque[_Job] = deque()
        """What it was given and has not answered, the one that it is at first."""
        self.process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._change: asyncio.Task[None] | None = None
        self._received = bytearray()
        self._is_closing = False

    def take(self, job: _Job) -> None:
        """Has one more file decoded."""
        self.held.append(job)
        if self._transport is not None:
            self._send(job)
        elif self._change is None:
            self._change = asyncio.create_task(self._start())

    def _send(self, job: _Job) -> None:
        transport = cast(asyncio.Transport, self._transport)
        transport.write(job.head)
        transport.write(job.data)

    async def _start(self) -> None:
        """Starts the process and sends it what has come meanwhile."""
        try:
            self.process, ours = await asyncio.to_thread(_started, self._message)
        except DecoderStartError as error:
            self._change = None
            held, self.held = self.held, deque()
            for job in held:
                if not job.answer.done():
                    job.answer.set_exception(error)
            return
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=ours)
        self._change = None
        for job in self.held:
            self._send(job)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers whom to ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._received.clear()

    def data_received(self, data: bytes) -> None:
        """Passes on each whole answer."""
        received = self._received
        received += data
        while len(received) >= FRAME.size:
            header_bytes, data_bytes = FRAME.unpack_from(received)
            middle = FRAME.size + header_bytes
            end = middle + data_bytes
            if len(received) < end:
                return
            header = json.loads(received[FRAME.size : middle])
            encoded = bytes(memoryview(received)[middle:end])
            del received[:end]
            job = self.held.popleft()
            if not job.answer.done():
                job.answer.set_result((header, encoded))
            self._on_free()

    def connection_lost(self, error: Exception | None) -> None:
        """Takes note that the process has ended."""
        self._transport = None
        if not self._is_closing:
            self._change = asyncio.create_task(self._bury())

    async def _bury(self) -> None:
        """Says which image the process was at; those behind it go back to the pool."""
        status = await asyncio.to_thread(_end, cast("subprocess.Popen[bytes]", self.process))
        self.process = self._change = None
        if self.held:
            job = self.held.popleft()
            detail = f"the decoder ended with status {status}"
            if not job.answer.done():
                answer = {"reason": RejectReason.DECODER_CRASHED.value, "detail": detail}
                job.answer.set_result((answer, b""))
        self._given_back.extendleft(reversed(self.held))
        self.held.clear()
        self._on_free()

    async def close(self) -> None:
        """Ends the process."""
        self._is_closing = True
        if self._change is not None:
            await asyncio.wait({self._change})
        if self._transport is not None:
            self._transport.abort()
        if self.process is not None:
            await asyncio.to_thread(_end, self.process)
            self.process = None


def _started(message: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Returns a process that has said that it is ready, and our end of the line to it.

    Raises:
        DecoderStartError: if it has not.
    """
    ours, its = socket.socketpair()
    for end in (ours, its):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    with tempfile.TemporaryFile() as said, its:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.decoder_process"],
                stdin=its.fileno(),
                stdout=its.fileno(),
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except BaseException:
            ours.close()
            raise
        its.close()
        try:
            _wait_for_start(ours, message)
        except (EOFError, ConnectionError, TimeoutError):
            ours.close()
            status = _end(process)
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines()
            word = next((line for line in reversed(lines) if line.strip()), "no word of it")
            raise DecoderStartError(
                f"a decoder process did not start (status {status}): {word[:500]}"
            ) from None
        except BaseException:
            ours.close()
            _end(process)
            raise
    ours.setblocking(False)
    return process, ours


def _wait_for_start(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(frame_head(message, 0))
    line.settimeout(START_SECONDS)
    with line.makefile("rb") as answers:
        read_frame(answers)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    return process.wait()
