"""A pool of decoding processes: all cores at work, and a crash costs one image."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, cast

from pipeline.dataset.processor_time import count_in, cpu_seconds_of, end_process
from pipeline.fetch.decoding.frames import (
    FRAME,
    Handling,
    frame_head,
    job_head,
    read_frame,
    start_message,
)
from schemas.errors import RejectReason, SampleRejected
from scoring.images.settings import Box, ImageSettings

REASONS = {reason.value: reason for reason in RejectReason}

START_SECONDS = 120
"""Time that a process may take to load its libraries, on a slow and busy disk too."""

HELD_AT_ONCE = 8
"""Images that a process is given: while it decodes one, the next is there already."""

SOCKET_BYTES = 1 << 20
"""What the system is asked to hold of what was sent to a process; it may grant less."""

Answer = tuple[dict[str, Any], bytes]
"""A process's message on a file."""


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
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class StartTime:
    """What it took until images could be decoded, which is the same however many there are."""

    seconds: float = 0.0
    """By the clock, until the first process was ready."""
    cpu_seconds: float = 0.0
    """Of all processes, until each was ready."""


@dataclass(frozen=True, slots=True)
class _FirstStart:
    """When a process was begun with first and when it was ready, and what it had taken by then."""

    began: float
    ready: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A file that waits for its answer."""

    data: bytes | bytearray
    head: bytes
    answer: asyncio.Future[Answer]


def decoded(answer: Answer) -> DecodedImage:
    """Returns the image that an answer brings.

    Raises:
        SampleRejected: if the file is unusable.
    """
    header, data = answer
    if "reason" in header:
        raise SampleRejected(REASONS[header["reason"]], header["detail"])
    length = header.pop("thumbnail_bytes")
    return DecodedImage(encoded=data[length:], thumbnail=data[:length], **header)


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

    @property
    def start_time(self) -> StartTime:
        """What starting took as far as is known now; processes that replace others do not count."""
        starts = [one.first_start for one in self._decoders if one.first_start is not None]
        if not starts:
            return StartTime()
        seconds = min(one.ready for one in starts) - min(one.began for one in starts)
        return StartTime(seconds, sum(one.cpu_seconds for one in starts))

    def expect(self, files: int) -> None:
        """Starts as many processes as so many files will need, so that they are ready then."""
        for decoder in self._decoders[:files]:
            decoder.start()

    async def decode(
        self,
        data: bytes | bytearray,
        expected_hash: str | None,
        handling: Handling = Handling.FETCHED,
        boxes: Sequence[Box] = (),
    ) -> DecodedImage:
        """Returns the image, checked, resized and encoded.

        Args:
            boxes: to blur.

        Raises:
            SampleRejected: if it is unusable.
            DecoderStartError: if nobody could look at it.
        """
        return decoded(await self.begin(data, expected_hash, handling, boxes))

    def begin(
        self,
        data: bytes | bytearray,
        expected_hash: str | None,
        handling: Handling = Handling.FETCHED,
        boxes: Sequence[Box] = (),
    ) -> "asyncio.Future[Answer]":
        """Returns the answer to come, of which `decoded` makes an image.

        It fails with `DecoderStartError` if nobody could look at the file.
        """
        head = job_head(expected_hash, handling, boxes, len(data))
        waiting = _Job(data, head, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if len(self._waiting) == 1:  # those that wait already do so since nobody has room
            self._hand_out()
        return waiting.answer

    def _hand_out(self) -> None:
        """Gives what waits to those that hold least."""
        while self._waiting and not self._is_closed:
            free = [one for one in self._decoders if one.has_room()]
            if not free:
                return
            min(free, key=lambda one: len(one.held)).take(self._waiting.popleft())

    async def close(self) -> None:
        """Ends the processes."""
        self._is_closed = True
        await asyncio.gather(*(decoder.close() for decoder in self._decoders))


class _Decoder(asyncio.Protocol):
    """One process, started when it is needed first and replaced when it ends."""

    def __init__(
        self, message: dict[str, Any], on_free: Callable[[], None], waiting: deque[_Job]
    ) -> None:
        self._message, self._on_free, self._waiting = message, on_free, waiting
        self.held: deque[_Job] = deque()
        """What it was given and has not answered, the one that it is at first."""
        self.process: subprocess.Popen[bytes] | None = None
        self.first_start: _FirstStart | None = None
        self._line: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._change: asyncio.Task[None] | None = None
        self._received = bytearray()
        self._is_closing = False

    def has_room(self) -> bool:
        """Returns whether it may be given more: what the system does not hold yet is copied."""
        if self._transport is None:
            return len(self.held) < HELD_AT_ONCE
        if self._transport.is_closing():
            return False
        unsent = self._transport.get_write_buffer_size()
        return len(self.held) < HELD_AT_ONCE and (not unsent or not self.held)

    def start(self) -> None:
        """Starts the process if it was not."""
        if self._change is None and self._transport is None and not self._is_closing:
            self._change = asyncio.create_task(self._start())

    def take(self, job: _Job) -> None:
        """Has one more file decoded."""
        self.held.append(job)
        if self._change is not None:
            return  # it is sent, or begun with, when that is done
        if self._transport is not None:
            self._send(job)
        else:
            self.start()

    def _send(self, job: _Job) -> None:
        # In one piece: the process is woken once.
        cast(asyncio.Transport, self._transport).write(job.head + job.data)

    async def _start(self) -> None:
        """Starts the process and sends it what has come meanwhile.

        Where that fails, nobody can look at what waits, here or in the pool.
        """
        began = time.perf_counter()
        try:
            process, self._line = await asyncio.to_thread(_started, self._message)
            self.process = process
            self.first_start = self.first_start or _FirstStart(
                began, time.perf_counter(), cpu_seconds_of(process.pid)
            )
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self, sock=self._line)
        except (DecoderStartError, OSError, RuntimeError) as error:
            self._change = None
            for job in (*self.held, *self._waiting):
                if not job.answer.done():
                    job.answer.set_exception(error)
            self.held.clear()
            self._waiting.clear()
            return
        if self._transport is None:
            return  # it has ended again, and is being buried
        self._change = None
        for job in self.held:
            self._send(job)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers whom to ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        self._received.clear()

    def resume_writing(self) -> None:
        """Takes more: the system holds all that was sent."""
        self._on_free()

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
        """Takes note that the process has ended: what was behind its image goes to the others."""
        if self._is_closing:
            self._transport = None
            return
        with suppress(OSError):  # a write that fails leaves answers unread
            while data := cast(socket.socket, self._line).recv(1 << 18):
                self.data_received(data)
        self._transport = None
        crashed = self.held.popleft() if self.held else None
        self._waiting.extendleft(reversed(self.held))
        self.held.clear()
        self._change = asyncio.create_task(self._reap(crashed))
        self._on_free()

    async def _reap(self, crashed: _Job | None) -> None:
        """Says which image the process was at, and begins with what has come meanwhile."""
        status = await asyncio.to_thread(end_process, cast("subprocess.Popen[bytes]", self.process))
        self.process = self._change = None
        if crashed is not None and not crashed.answer.done():
            detail = f"the decoder ended with status {status}"
            header = {"reason": RejectReason.DECODER_CRASHED.value, "detail": detail}
            crashed.answer.set_result((header, b""))
        if self.held and not self._is_closing:
            self._change = asyncio.create_task(self._start())

    async def close(self) -> None:
        """Ends the process."""
        self._is_closing = True
        if self._change is not None:
            await asyncio.wait({self._change})
        if self._transport is not None:
            self._transport.abort()
        if self.process is not None:
            await asyncio.to_thread(end_process, self.process)
            self.process = None


def _started(message: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Returns a process that has said that it is ready, and our end of the line to it.

    Raises:
        DecoderStartError: if it has not.
    """
    with tempfile.TemporaryFile() as said, ExitStack() as undo:
        ours, its = socket.socketpair()
        undo.callback(ours.close)
        with its:
            for end in (ours, its):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.fetch.decoding.process"],
                stdin=its.fileno(),
                stdout=its.fileno(),
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        undo.callback(end_process, process)
        count_in(process.pid)
        try:
            _wait_for_start(ours, message)
        except (EOFError, ConnectionError, TimeoutError):
            status = end_process(process)
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines()
            word = next((line for line in reversed(lines) if line.strip()), "no word of it")
            raise DecoderStartError(
                f"a decoder process did not start (status {status}): {word[:500]}"
            ) from None
        ours.setblocking(False)
        undo.pop_all()
    return process, ours


def _wait_for_start(line: socket.socket, message: dict[str, Any]) -> None:
    line.sendall(frame_head(message, 0))
    line.settimeout(START_SECONDS)
    with line.makefile("rb") as answers:
        read_frame(answers)
