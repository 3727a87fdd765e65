"""The shards of a publication: WebDataset tars, or Parquet with the images within."""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.members import member_json
from pipeline.dataset.tars import TarWriter
from pipeline.dataset.train_samples import fetched_part
from pipeline.dataset.train_shards import HashingFile
from pipeline.publish.features import LISTS, parquet_schema
from schemas.shards import image_member
from schemas.storage import commit_file

Sample = tuple[dict[str, Any], tuple[bytes, ...]]
"""A row and its encoded images."""

ROWS_OF_GROUP = 256
"""Rows of a row group, so that a reader of a few need not take many images with them."""

OFFSET = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A file of a publication."""

    name: str
    """Below the publication's folder."""
    samples: int
    num_bytes: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as JSON holds it."""
        return asdict(self)


def write_tar(
    path: str,
    name: str,
    samples: Iterable[Sample],
    say_done: Callable[[], None],
    kept: Sequence[pa.Field],
) -> list[Published]:
    """Commits a tar and, before it, the index of its samples that Megatron-Energon reads.

    Args:
        name: of the file below the publication's folder, at the end of the path.
        kept: columns of the input's own.
    """
    starts = [0]
    with commit_file(path) as file:
        output = HashingFile(file)
        with TarWriter(cast(IO[bytes], output)) as tar:
            for row, images in samples:
                _add(tar, row, images, kept)
                starts.append(tar.length)
                say_done()
        index = b"".join(OFFSET.pack(start) for start in starts)
        with commit_file(f"{path}.idx") as beside:
            hashed = HashingFile(beside)
            hashed.write(index)
    count = len(starts) - 1
    return [
        Published(name=name, samples=count, num_bytes=output.length, sha256=output.sha256),
        Published(name=f"{name}.idx", samples=0, num_bytes=len(index), sha256=hashed.sha256),
    ]


def _add(
    tar: TarWriter, row: dict[str, Any], images: tuple[bytes, ...], kept: Sequence[pa.Field]
) -> None:
    for number, image in enumerate(images):
        tar.add(image_member(row["key"], row["image_format"], number), image)
    tar.add(f"{row['key']}.txt", row["caption"].encode())
    known = {name: row[name] for name in ("clip_score", "alignment_level")}
    tar.add(f"{row['key']}.json", member_json(fetched_part(row), known, kept))


def write_parquet(
    path: str,
    name: str,
    samples: Iterable[Sample],
    say_done: Callable[[], None],
    kept: Sequence[pa.Field],
) -> list[Published]:
    """Commits a table with the images within."""
    schema = parquet_schema(kept)
    count = 0
    with commit_file(path) as file:
        output = HashingFile(file)
        options: dict[str, Any] = {
            "compression": "zstd",
            "compression_level": 1,
            "write_page_index": True,
        }
        with pq.ParquetWriter(pa.PythonFile(output, "w"), schema, **options) as writer:
            waiting: list[dict[str, Any]] = []
            for row, images in samples:
                waiting.append(parquet_row(row, images))
                count += 1
                if len(waiting) == ROWS_OF_GROUP:
                    writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
                    waiting = []
                say_done()
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
    return [Published(name=name, samples=count, num_bytes=output.length, sha256=output.sha256)]


def parquet_row(row: dict[str, Any], images: tuple[bytes, ...]) -> dict[str, Any]:
    """Returns a row as a published table holds it: images within, JSON texts as lists."""
    stored = [
        {"bytes": image, "path": image_member(row["key"], row["image_format"], number)}
        for number, image in enumerate(images)
    ]
    lists = {name: json.loads(row[name]) if row[name] else None for name in LISTS}
    lists["captions"] = lists["captions"] or [row["caption"]]
    return {
        **row,
        **lists,
        "image": stored[0] if stored else None,
        "other_images": stored[1:] or None,
    }
