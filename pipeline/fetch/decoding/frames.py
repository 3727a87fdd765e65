"""What a worker and its decoding processes say to each other: frames of a JSON header and bytes."""

import dataclasses
import functools
import json
import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import IO, Any

from scoring.images.settings import Box, ImageSettings

FRAME = struct.Struct(">II")
"""Length of the header and of the bytes that follow it."""


class Handling(StrEnum):
    """What is done with an image that can be decoded."""

    FETCHED = "fetched"
    """It is encoded anew: what the web sends may hold anything."""
    STORED = "stored"
    """It comes from a dataset and is kept as it is where it fits."""
    FINAL = "final"
    """It is kept so in any size: another program has judged and resized it."""


def frame_head(header: dict[str, Any], data_bytes: int) -> bytes:
    """Returns a message up to its bytes, which follow."""
    return _head(json.dumps(header).encode(), data_bytes)


def job_head(
    expected_hash: str | None, handling: Handling, boxes: Sequence[Box], data_bytes: int
) -> bytes:
    """Returns a job for a file up to the file's bytes, which follow."""
    if expected_hash is None and not boxes:
        return _head(_plain_job(handling), data_bytes)
    return _head(_job(expected_hash, handling, boxes), data_bytes)


def _job(expected_hash: str | None, handling: Handling, boxes: Sequence[Box]) -> bytes:
    job = {"expected_hash": expected_hash, "handling": handling.value, "boxes": list(boxes)}
    return json.dumps(job).encode()


@functools.cache
def _plain_job(handling: Handling) -> bytes:
    """Returns what nearly all jobs say."""
    return _job(None, handling, ())


def _head(text: bytes, data_bytes: int) -> bytes:
    return FRAME.pack(len(text), data_bytes) + text


def write_frame(file: IO[bytes], header: dict[str, Any], data: bytes = b"") -> None:
    """Writes one message, in one go: who reads it is woken once."""
    file.write(frame_head(header, len(data)) + data)
    file.flush()


def read_frame(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Returns one message.

    Raises:
        EOFError: if the other side is gone.
    """
    head = file.read(FRAME.size)
    if len(head) < FRAME.size:
        raise EOFError
    header_bytes, data_bytes = FRAME.unpack(head)
    text, data = file.read(header_bytes), file.read(data_bytes)
    if len(text) < header_bytes or len(data) < data_bytes:
        raise EOFError
    return json.loads(text), data


def start_message(settings: ImageSettings, timeout_seconds: float) -> dict[str, Any]:
    """Returns the first message that the process expects."""
    return {"settings": dataclasses.asdict(settings), "timeout_seconds": timeout_seconds}
