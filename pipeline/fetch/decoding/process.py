"""The process that decodes: what a hostile file can break is this, not the worker.

Started as `python -P -m pipeline.fetch.decoding.process`: no file of the user stands in for ours.
It reads jobs from its standard input and answers on its standard output, each a frame of a JSON
header and bytes. The first answer says that it has started.
"""

import dataclasses
import hashlib
import math
import os
import resource
import signal
import warnings
from typing import IO, Any

import cv2
from PIL import Image

from pipeline.fetch.decoding.frames import Handling, read_frame, write_frame
from schemas.errors import RejectReason, SampleRejected
from schemas.memory import keep_memory_of_images
from scoring.images.prepare import PreparedImage, prepare_image
from scoring.images.settings import ImageSettings

READ_AT_ONCE = 256 * 1024
"""Bytes of jobs that are taken from the system in one call, if so many are there."""

BASE_MEMORY_BYTES = 4 * 1024**3
BYTES_PER_PIXEL = 32
"""Decoded RGBA, its copies and an encoder's, generously."""


def check_hash(data: bytes, expected_hash: str | None) -> None:
    """Raises `SampleRejected` if the bytes do not have the hash, given as algorithm:hex."""
    if expected_hash is None:
        return
    algorithm, _, wanted = expected_hash.partition(":")
    if algorithm not in ("md5", "sha1", "sha256", "sha512"):
        detail = f"unknown algorithm {algorithm[:20]!r}: use md5:, sha256: or sha512:"
        raise SampleRejected(RejectReason.HASH_MISMATCH, detail)
    found = hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
    if found != wanted.strip().lower():
        raise SampleRejected(RejectReason.HASH_MISMATCH, f"{algorithm} is {found}")


def answer(
    data: bytes, job: dict[str, Any], settings: ImageSettings
) -> tuple[dict[str, Any], bytes]:
    """Returns the message that tells what became of a file: its bytes are those of two.

    The thumbnail comes first, as long as the header says, then the encoded image.
    """
    try:
        check_hash(data, job["expected_hash"])
        if job["handling"] == Handling.FINAL:
            settings = dataclasses.replace(
                settings, resize_mode="no", min_side=0, max_aspect_ratio=math.inf
            )
        is_stored = job["handling"] != Handling.FETCHED
        boxes = [tuple(box) for box in job.get("boxes", ())]
        image: PreparedImage = prepare_image(data, settings, is_stored, boxes)
    except SampleRejected as rejected:
        return {"reason": rejected.reason.value, "detail": rejected.detail}, b""
    header = {
        "width": image.width,
        "height": image.height,
        "original_width": image.original_width,
        "original_height": image.original_height,
        "pixel_hash": image.pixel_hash,
        "thumbnail_bytes": len(image.thumbnail),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return header, image.thumbnail + image.encoded


def serve(jobs: IO[bytes], answers: IO[bytes]) -> None:
    """Answers jobs until there are no more.

    Each job has an alarm that ends the process, wherever in a C library it may hang.
    """
    start, _ = read_frame(jobs)
    settings = ImageSettings(**start["settings"])
    memory = BASE_MEMORY_BYTES + BYTES_PER_PIXEL * settings.max_pixels
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    write_frame(answers, {"is_ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says from now on is about images
    os.dup2(2, 1)
    while True:
        try:
            job, data = read_frame(jobs)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, start["timeout_seconds"])
        header, encoded = answer(data, job, settings)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_frame(answers, header, encoded)


def main() -> None:
    """Serves on the standard streams; what C libraries print goes to standard error."""
    keep_memory_of_images()
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    Image.init()  # loads the decoders now, not on the first image's time
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # What ends a job's whole group must not look like a file's fault: this ends when its job does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        serve(os.fdopen(0, "rb", READ_AT_ONCE, closefd=False), answers)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
