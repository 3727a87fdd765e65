"""A pool of decoding processes: all cores at work, and a crash costs one image."""

import asyncio
import os
import queue
import select
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

from pipeline.decoder_process import Handling, read_frame, start_message, write_frame
from schemas.errors import RejectReason, SampleRejected
from scoring.config import ImageSettings

REASONS = {reason.value: reason for reason in RejectReason}


START_SECONDS = 120
"""Time that a process may take to load its libraries, on a slow and busy disk too."""


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


class DecoderPool:
    """Decodes in processes of its own, each with one image at a time.

    A process that crashes, hangs or outgrows its memory is replaced; the image that it held is
    rejected as `decoder_crashed`. One that cannot even start is no image's fault: that is raised.
    """

    def __init__(self, settings: ImageSettings, processes: int, timeout_seconds: float) -> None:
        self._settings, self._timeout_seconds = settings, timeout_seconds
        count = processes or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")
        self._idle: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(None)

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
        loop = asyncio.get_running_loop()
        job = {"expected_hash": expected_hash, "handling": handling.value}
        header, encoded = await loop.run_in_executor(self._threads, self._ask, data, job)
        if "reason" in header:
            raise SampleRejected(REASONS[header["reason"]], header["detail"])
        return DecodedImage(encoded=encoded, **header)

    def _ask(self, data: bytes | bytearray, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        process = self._idle.get()
        try:
            if process is None:
                process = self._start()
            write_frame(cast(IO[bytes], process.stdin), job, data)
            answer = read_frame(cast(IO[bytes], process.stdout))
        except (EOFError, BrokenPipeError):
            assert process is not None
            status = _end(process)
            self._idle.put(None)
            detail = f"the decoder ended with status {status}"
            return {"reason": RejectReason.DECODER_CRASHED.value, "detail": detail}, b""
        except BaseException:
            if process is not None:
                _end(process)
            self._idle.put(None)
            raise
        self._idle.put(process)
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        """Returns a process that has said that it is ready."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.decoder_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
            message = start_message(self._settings, self._timeout_seconds)
            try:
                write_frame(cast(IO[bytes], process.stdin), message)
                _wait_for_start(cast(IO[bytes], process.stdout))
            except (EOFError, BrokenPipeError, TimeoutError):
                status = _end(process)
                said.seek(0)
                lines = said.read().decode("utf-8", "replace").splitlines()
                word = next((line for line in reversed(lines) if line.strip()), "no word of it")
                raise DecoderStartError(
                    f"a decoder process did not start (status {status}): {word[:500]}"
                ) from None
            except BaseException:
                _end(process)
                raise
        return process

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        while not self._idle.empty():
            process = self._idle.get()
            if process is not None:
                _end(process)


def _wait_for_start(answers: IO[bytes]) -> None:
    poll = select.poll()
    poll.register(answers, select.POLLIN)
    if not poll.poll(START_SECONDS * 1000):
        raise TimeoutError
    read_frame(answers)


def _end(process: subprocess.Popen[bytes]) -> int:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                continue
    return process.wait()
