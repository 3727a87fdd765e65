"""A train shard is written in one pass, sample by sample; and the index of all of them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import IO, cast

import pyarrow as pa

from pipeline.dataset.members import member_json
from pipeline.dataset.ownership import listed_files
from pipeline.dataset.tars import TarWriter
from schemas.columns import table_from_records, with_kept, write_table
from schemas.records import TRAIN_SCHEMA, FetchedSample, TrainSample
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, commit_text, exists, open_read, remove

MEMBERS_VERSION = 2
"""Of what the `.json` members hold; shards of another are packed anew."""

ScoreAndLevel = tuple[float | None, int | None]
"""A sample's clip_score and alignment_level."""


PackedSample = tuple[FetchedSample, ScoreAndLevel, tuple[bytes, ...]]
"""A sample, its score and level, and its images as they are encoded."""


def write_train_shard(
    layout: DatasetLayout,
    shard: int,
    samples: Iterable[PackedSample],
    fingerprint: str,
    say_done: Callable[[int], None],
    kept: Sequence[pa.Field] = (),
) -> tuple[int, int]:
    """Commits a train shard, the table last; returns its samples and the length of its tar.

    Args:
        say_done: told how many samples are written, after each.
        kept: the input's own columns.
    """
    rows: list[TrainSample] = []
    with commit_file(layout.train(shard, "tar")) as file:
        output = HashingFile(file)
        with TarWriter(cast(IO[bytes], output)) as tar:
            for sample, ranked, images in samples:
                rows.append(_add_sample(tar, sample, ranked, images, kept))
                say_done(len(rows))
    table = table_from_records(rows, with_kept(TRAIN_SCHEMA, kept))
    metadata = {
        "fingerprint": fingerprint,
        "tar_sha256": output.sha256,
        "tar_bytes": str(output.length),
    }
    with commit_file(layout.train(shard, "parquet")) as file:
        write_table(table, file, metadata)
    return len(rows), output.length


def write_index(layout: DatasetLayout, packed: Iterable[tuple[int, int, int]]) -> list[int]:
    """Writes the list of train shards, removes those of an earlier packing; returns the numbers.

    Source: the format of `wids`, the random-access reader of the webdataset package.
    """
    shards = sorted(packed)
    names = {f"{number:06d}" for number, _, _ in shards}
    for path in listed_files(layout, Stage.PACK.folder):
        name = path.rsplit("/", 1)[-1].split(".", 1)[0]
        if name.isdecimal() and name not in names:
            remove(path)
    index = {
        "wids_version": 1,
        "shardlist": [
            {"url": f"{number:06d}.tar", "nsamples": samples, "filesize": tar_bytes}
            for number, samples, tar_bytes in shards
        ],
    }
    text = json.dumps(index, indent=2) + "\n"
    if _standing_text(layout.train_index) != text:
        commit_text(layout.train_index, text)
    return [number for number, _, _ in shards]


def _standing_text(path: str) -> str | None:
    if not exists(path):
        return None
    with open_read(path) as file:
        return file.read().decode()


class HashingFile:
    """A file that is written from its beginning to its end, and its SHA-256 and length."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.length = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        """Writes bytes and returns how many."""
        self._digest.update(data)
        self.length += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Returns how many bytes are written."""
        return self.length

    def flush(self) -> None:
        """Hands on what waits."""
        self._file.flush()

    @property
    def closed(self) -> bool:
        """Whether the file is closed; who opened it closes it."""
        return self._file.closed

    @property
    def sha256(self) -> str:
        """Hash of what is written so far, 64 hex digits."""
        return self._digest.hexdigest()


def _add_sample(
    tar: TarWriter,
    sample: FetchedSample,
    ranked: ScoreAndLevel,
    images: tuple[bytes, ...],
    kept: Sequence[pa.Field],
) -> TrainSample:
    """Adds a sample's members to the tar and returns its row."""
    score, level = ranked
    members = zip(sample.image_members, images, strict=True)
    offsets = [tar.add(name, image) for name, image in members]
    tar.add(f"{sample.key}.txt", sample.caption.encode())
    known = {"clip_score": score, "alignment_level": level}
    tar.add(f"{sample.key}.json", member_json(sample, known, kept))
    return TrainSample(
        **asdict(sample),
        clip_score=score,
        alignment_level=level,
        image_offset=offsets[0] if offsets else None,
        image_bytes=len(images[0]) if images else None,
        more_image_offsets=offsets[1:] or None,
        more_image_bytes=[len(image) for image in images[1:]] or None,
    )
