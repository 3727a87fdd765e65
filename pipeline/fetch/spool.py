"""A fetched shard on disk: its tar and its table in the order of the keys, its statistics."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from types import TracebackType
from typing import Any, cast

import pyarrow as pa

from pipeline.dataset.members import member_json
from pipeline.dataset.tars import TarWriter
from pipeline.fetch.decoding.pool import DecodedImage
from pipeline.fetch.process_settings import give_way
from schemas.columns import table_from_records, with_kept, write_table
from schemas.errors import SampleRejected
from schemas.records import (
    FETCHED_SCHEMA,
    MEMBER_FIELDS,
    MORE_IMAGE,
    PAIR_COLUMNS,
    FetchedSample,
    Pair,
)
from schemas.shards import ImageFormat
from schemas.storage import commit_file

SPOOL_MEMORY_BYTES = 2 * 1024 * 1024
"""What of a shard's finished images waits in memory; what came before waits in a file.

So little that the processor still has it at hand when it is written: of 16 MiB, adding a picture
costs two to three times as much.
"""


class Spool:
    """Finished images of a shard until all are there: the newest in memory, others in a file.

    What is in memory is written at once when it is too much, and read where it lies: a call of the
    system for every image would cost the thread that asks more than half of what a request does.
    """

    def __init__(self, memory_bytes: int | None = None) -> None:
        self._memory_bytes = SPOOL_MEMORY_BYTES if memory_bytes is None else memory_bytes
        self._newest: dict[int, bytes] = {}
        self._begin = self.size = 0
        """Where what is in memory begins, and where the next image will."""
        self._file: FileIO | None = None

    def add(self, data: bytes) -> int:
        """Takes an image; returns where it waits."""
        place = self.size
        self._newest[place] = data
        self.size += len(data)
        if self.size - self._begin > self._memory_bytes:
            self._write()
        return place

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        left = memoryview(b"".join(self._newest.values()))
        while left:
            left = left[self._file.write(left) :]
        self._newest.clear()
        self._begin = self.size

    def read(self, place: int, length: int) -> bytes:
        """Returns an image."""
        if place >= self._begin:
            return self._newest[place] if length else b""
        return os.pread(cast(FileIO, self._file).fileno(), length, place)

    def __enter__(self) -> "Spool":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forgets the images."""
        self._newest.clear()
        if self._file is not None:
            self._file.close()


ROWS_OF_A_TURN = 8
"""Rows that are written, about half a millisecond's, before the thread that asks has its turn."""


@dataclass(frozen=True, slots=True)
class SpooledImage:
    """An image that waits for its turn in the tar."""

    offset: int
    length: int
    image: DecodedImage
    """Its `encoded` is empty: the bytes are in the spool."""


Outcome = SpooledImage | SampleRejected
"""Of an image that was asked for: where it waits, or why it is not there."""

KeptPair = tuple[Pair, tuple[SpooledImage, ...]]
"""A pair with its images, in their order; none for text alone."""

Fetched = tuple[FetchedSample, tuple[bytes, ...]]
"""A sample with its encoded images, in their order; none for text alone."""


def write_samples(
    samples: Iterable[Fetched],
    tar_path: str,
    table_path: str,
    fingerprint: str,
    kept: Sequence[pa.Field] = (),
) -> None:
    """Writes the tar and the table of a fetched shard, the same bytes for the same samples.

    Args:
        samples: in the order of their keys.
        kept: the input's own columns.
    """
    rows = []
    with commit_file(tar_path) as file, TarWriter(file) as tar:
        for sample, images in samples:
            rows.append(sample)
            for name, image in zip(sample.image_members, images, strict=True):
                tar.add(name, image)
            tar.add(f"{sample.key}.txt", sample.caption.encode("utf-8", "replace"))
            tar.add(f"{sample.key}.json", sample_json(sample, kept))
    table = table_from_records(rows, with_kept(FETCHED_SCHEMA, kept))
    with commit_file(table_path) as file:
        write_table(table, file, {"fingerprint": fingerprint})


def read_spool(
    kept: Iterable[KeptPair], spool: Spool, image_format: ImageFormat
) -> Iterator[Fetched]:
    """Yields the samples of pairs that were fetched, those of one in memory at a time."""
    for number, (pair, spooled) in enumerate(kept):
        if number % ROWS_OF_A_TURN == 0:
            give_way()
        images = tuple(spool.read(place.offset, place.length) for place in spooled)
        yield fetched_sample(pair, spooled, image_format), images


def fetched_sample(
    pair: Pair, spooled: tuple[SpooledImage, ...], image_format: ImageFormat
) -> FetchedSample:
    """Returns the row of a pair whose images were fetched, or that is text alone."""
    image = spooled[0].image if spooled else None
    more = [
        {name: getattr(place.image, name) for name in MORE_IMAGE.names} for place in spooled[1:]
    ]
    return FetchedSample(
        **{name: getattr(pair, name) for name in PAIR_COLUMNS},
        kept=pair.kept,
        image_format=image_format if image else None,
        width=image.width if image else None,
        height=image.height if image else None,
        original_width=image.original_width if image else None,
        original_height=image.original_height if image else None,
        sha256=image.sha256 if image else None,
        pixel_hash=image.pixel_hash if image else None,
        more_images=more or None,
        thumbnail=image.thumbnail if image else None,
    )


def sample_json(sample: FetchedSample, kept: Sequence[pa.Field] = ()) -> bytes:
    """Returns what a sample's json member holds: our fields, and img2dataset's of success."""
    return member_json(sample, dict(zip(MEMBER_FIELDS, ("success", ""), strict=True)), kept)


def shard_stats(reasons: dict[str, int], successes: int, started_at: float) -> dict[str, Any]:
    """Returns a shard's statistics, in img2dataset's fields and ours.

    Args:
        reasons: how many pairs were rejected for each reason.
        started_at: Unix time.
    """
    ended_at = time.time()
    of_images = sum(count for reason, count in reasons.items() if reason in IMAGE_REASONS)
    rejected = sum(reasons.values())
    return {
        "count": successes + rejected,
        "successes": successes,
        "failed_to_download": rejected - of_images,
        "failed_to_resize": of_images,
        "duration": ended_at - started_at,
        "start_time": started_at,
        "end_time": ended_at,
        "status_dict": {"success": successes, **reasons},
        "kept": successes,
        "rejected": reasons,
    }


IMAGE_REASONS = frozenset(
    {
        "not_an_image",
        "decode_failed",
        "decoder_crashed",
        "too_many_pixels",
        "too_many_frames",
        "too_small",
        "too_elongated",
    }
)
"""Reasons that img2dataset counts as a failure to resize."""
