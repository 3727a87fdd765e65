"""One train shard, read once: its tar against its table, both against the manifest."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pipeline.dataset.members import member_json
from pipeline.dataset.tars import BLOCK_BYTES, name_and_size, padded
from pipeline.dataset.train_samples import fetched_part, image_places
from pipeline.report.verify_captions import caption_faults
from pipeline.report.verify_origin import unlike_fetched
from schemas.columns import check_schema, file_metadata, kept_fields, recaption_fields
from schemas.errors import DatasetError
from schemas.manifest import Manifest, ShardEntry
from schemas.records import TRAIN_SCHEMA, pair_key
from schemas.shards import DatasetLayout
from schemas.storage import open_read

MOST_OF_SHARD = 8
"""Faults of one shard that are told singly."""

CHUNK_BYTES = 1 << 20
JPEG_START = b"\xff\xd8\xff"
PILLOW_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(slots=True)
class ShardFindings:
    """What was found in a shard."""

    name: str
    keys: pa.Array
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ShardCheck:
    """What all shards are held against."""

    levels: dict[int, tuple[float, float]]
    """Level to its lowest and highest score."""

    @classmethod
    def of(cls, manifest: Manifest) -> "ShardCheck":
        """Returns what a manifest says that shards must be."""
        levels = {
            level["level"]: (level["lowest_score"], level["highest_score"])
            for level in manifest.level_edges or []
            if level["count"]
        }
        return cls(levels)


@dataclass(slots=True)
class Member:
    """A member of a tar, read."""

    name: str
    offset: int
    content: bytes


def check_shard(layout: DatasetLayout, check: ShardCheck, entry: ShardEntry) -> ShardFindings:
    """Returns what is wrong with a shard's tar and table."""
    findings = ShardFindings(entry.name, pa.array([], pa.string()))
    rows = _checked_table(layout, entry, findings)
    faults = _Faults(findings.problems, f"train/{entry.name}.tar")
    path = layout.train(int(entry.name), "tar")
    try:
        with open_read(path) as file:
            source = _HashingReader(file)
            if rows is not None:
                findings.keys = rows["key"].combine_chunks()
                _check_samples(source, rows, check, faults, entry.name)
            source.read_rest()
    except FileNotFoundError:
        findings.problems.append(f"train/{entry.name}.tar is missing")
        return findings
    found = (source.length, source.sha256)
    if found != (entry.tar_bytes, entry.tar_sha256):
        findings.problems.append(
            f"train/{entry.name}.tar has {found[0]} bytes with SHA-256 {found[1]}, recorded: "
            f"{(entry.tar_bytes, entry.tar_sha256)}"
        )
        if rows is not None and not faults.count:
            for where, fault in unlike_fetched(layout, entry.name, rows):
                faults.add(where, fault)
    faults.finish()
    return findings


class _Faults:
    """Tells the first faults of a shard singly and counts the others."""

    def __init__(self, problems: list[str], file: str) -> None:
        self._problems, self._file, self.count = problems, file, 0

    def add(self, where: str, text: str) -> None:
        self.count += 1
        if self.count <= MOST_OF_SHARD:
            self._problems.append(f"{where}: {text}")

    def finish(self) -> None:
        if self.count > MOST_OF_SHARD:
            self._problems.append(
                f"{self._file}: {self.count - MOST_OF_SHARD:,} more rows are not as they should be"
            )


class _HashingReader:
    """A tar that is read from its beginning to its end, hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self.length = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._digest.update(data)
        self.length += len(data)
        return data

    def read_rest(self) -> None:
        while self.read(CHUNK_BYTES):
            pass

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


def _checked_table(
    layout: DatasetLayout, entry: ShardEntry, findings: ShardFindings
) -> pa.Table | None:
    """Returns a shard's table; None if it cannot be read."""
    name = f"train/{entry.name}.parquet"
    try:
        with open_read(layout.train(int(entry.name), "parquet")) as file:
            data = file.read()
    except FileNotFoundError:
        findings.problems.append(f"{name} is missing")
        return None
    found = (len(data), hashlib.sha256(data).hexdigest())
    if found != (entry.parquet_bytes, entry.parquet_sha256):
        findings.problems.append(
            f"{name} has {found[0]} bytes with SHA-256 {found[1]}, recorded: "
            f"{(entry.parquet_bytes, entry.parquet_sha256)}"
        )
    try:
        parquet = pq.ParquetFile(io.BytesIO(data))
        check_schema(parquet.schema_arrow, TRAIN_SCHEMA, name)
        table = parquet.read(use_threads=False)
    except (pa.ArrowException, OSError, DatasetError) as error:
        findings.problems.append(f"{name} cannot be read: {' '.join(str(error).split())}")
        return None
    if len(table) != entry.samples:
        findings.problems.append(f"{name} has {len(table)} rows, recorded: {entry.samples}")
    stored = file_metadata(parquet.schema_arrow)
    said = (int(stored.get("tar_bytes", -1)), stored.get("tar_sha256"))
    if said != (entry.tar_bytes, entry.tar_sha256):
        findings.problems.append(
            f"{name} says that its tar has {said}, the manifest says otherwise"
        )
    return table


def _members(source: _HashingReader) -> Iterator[Member]:
    """Yields the members of a tar with their content.

    Raises:
        DatasetError: if it is no tar, or ends early.
    """
    while True:
        start = source.length
        header = source.read(BLOCK_BYTES)
        if len(header) == BLOCK_BYTES and not header.strip(b"\0"):
            return
        try:
            name, size = name_and_size(header)
        except ValueError as error:
            raise DatasetError(f"no member where one must be, at byte {start}") from error
        said, summed = header[148:154], sum(header) - sum(header[148:156]) + 8 * 32
        if said != b"%06o" % summed:
            raise DatasetError(f"a broken header at byte {start}, of {name}")
        content = source.read(size)
        if len(content) + len(source.read(padded(size) - size)) < padded(size):
            raise DatasetError(f"the file ends within {name}")
        yield Member(name, start + BLOCK_BYTES, content)


def _check_samples(
    source: _HashingReader, rows: pa.Table, check: ShardCheck, faults: _Faults, name: str
) -> None:
    """Holds each row against the members that must stand next in the tar."""
    members = _members(source)
    kept, told = kept_fields(rows.schema), bool(recaption_fields(rows.schema))
    place = 0
    try:
        for batch in rows.to_batches(1024):
            for row in batch.to_pylist():
                where = f"train/{name} row {place} ({row['key']})"
                place += 1
                for fault in (*_row_faults(row, check, told), *caption_faults(row, told)):
                    faults.add(where, fault)
                for wanted in _expected(row):
                    member = next(members, None)
                    if member is None or member.name != wanted:
                        there = "the end" if member is None else member.name
                        faults.add(where, f"the tar has {there} where {wanted} must be")
                        return
                    for fault in _member_faults(member, row, kept):
                        faults.add(where, fault)
        extra = next(members, None)
        if extra is not None:
            faults.add(f"train/{name}.tar", f"{extra.name} is of no row")
    except DatasetError as error:
        faults.add(f"train/{name}.tar, at row {place - 1}", str(error))


def _expected(row: dict[str, Any]) -> list[str]:
    """Returns the names of a row's members, in their order."""
    key = row["key"]
    images = [] if row["image_format"] is None else [place[0] for place in _places(row)]
    return [*images, f"{key}.txt", f"{key}.json"]


def _places(row: dict[str, Any]) -> list[tuple[str, int | None, int | None]]:
    """Returns the places of a row's images; of an impossible row none."""
    try:
        return [*image_places(row)]
    except ValueError:
        return []


def _row_faults(row: dict[str, Any], check: ShardCheck, is_recaptioned: bool) -> Iterator[str]:
    """Yields what a row says that cannot be.

    Args:
        is_recaptioned: whether its table tells of captions by a model.
    """
    urls = [row["url"] or "", *json.loads(row["more_urls"] or "[]")]
    before = row["original_caption"] if is_recaptioned else None
    text = row["conversations"] or row["captions"] or before or row["caption"]
    if pair_key("\n".join(urls), text) != row["key"]:
        yield "its key is not that of its url and text"
    level, score = row["alignment_level"], row["clip_score"]
    if level is None or score is None or not check.levels:
        return
    low, high = check.levels.get(level, (2.0, -2.0))
    if not low <= score <= high:
        yield f"its score {score:.6f} is not of level {level}, which has {low:.6f} to {high:.6f}"


def _member_faults(member: Member, row: dict[str, Any], kept: Sequence[pa.Field]) -> Iterator[str]:
    """Yields how a member differs from what its row says of it."""
    if member.name.endswith(".txt"):
        if member.content != row["caption"].encode():
            yield f"{member.name} is not its caption"
    elif member.name.endswith(".json"):
        yield from _json_faults(member, row, kept)
    else:
        yield from _image_faults(member, row)


def _json_faults(member: Member, row: dict[str, Any], kept: Sequence[pa.Field]) -> Iterator[str]:
    known = {name: row[name] for name in ("clip_score", "alignment_level")}
    written = member_json(fetched_part(row), known, kept)
    if member.content == written:
        return
    wanted = json.loads(written)
    try:
        found = json.loads(member.content)
    except ValueError as error:
        yield f"{member.name} is no JSON: {error}"
        return
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{member.name} has {name} {found.get(name)!r}, the table {value!r}"


def _image_faults(member: Member, row: dict[str, Any]) -> Iterator[str]:
    places = _places(row)
    number = [place[0] for place in places].index(member.name)
    if places[number] != (member.name, member.offset, len(member.content)):
        yield (
            f"{member.name} is at byte {member.offset}, {len(member.content)} long, the table says "
            f"{places[number][1]}, {places[number][2]}"
        )
    known = row if number == 0 else row["more_images"][number - 1]
    wanted = (PILLOW_NAMES[row["image_format"]], known["width"], known["height"])
    try:
        found = _format_and_size(member.content)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        yield f"{member.name} is no image: {' '.join(str(error).split())}"
        return
    if found != wanted:
        yield f"{member.name} is {found}, the table says {wanted}"


def _format_and_size(content: bytes) -> tuple[str, int, int]:
    """Returns the name of an image's format, its width and its height, by its head alone.

    Raises:
        OSError, ValueError, DecompressionBombError: if it is no image.
    """
    if content.startswith(JPEG_START):
        with suppress(ValueError):  # of which Pillow says more
            height, width, _, _ = simplejpeg.decode_jpeg_header(content)
            return "JPEG", width, height
    with Image.open(io.BytesIO(content)) as image:
        return str(image.format), image.width, image.height
