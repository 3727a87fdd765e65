"""A train shard is written in one pass, image by image; and the index of all of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import PackConfig
from pipeline.dataset.captions import chosen_captions
from pipeline.dataset.commits import deciding_settings, is_committed, stage_fingerprint
from pipeline.dataset.members import member_json
from pipeline.dataset.ownership import listed_files
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.tars import TarWriter, read_members
from pipeline.pack.plan import Piece, TrainShardPlan
from schemas.columns import check_schema, file_metadata, read_table, table_from_records, write_table
from schemas.errors import DatasetError
from schemas.records import (
    FETCHED_SCHEMA,
    LEVELLED_SCHEMA,
    SCORED_SCHEMA,
    STORED_COLUMNS,
    TRAIN_SCHEMA,
    StoredSample,
    TrainSample,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_file,
    commit_text,
    committed_fingerprint,
    exists,
    open_read,
    remove,
)

MEMBERS_VERSION = 2
"""Of what the `.json` members hold; shards of another are packed anew."""

ScoreAndLevel = tuple[float | None, int | None]
"""A sample's clip_score and alignment_level."""


def pack_shard(
    layout: DatasetLayout, plan: TrainShardPlan, config: PackConfig
) -> tuple[int, int, int]:
    """Writes a train shard, unless that is done already; returns (number, samples, tar bytes)."""
    marker = layout.train(plan.shard, "parquet")
    fingerprint = _fingerprint(layout, plan, config)
    if not is_committed(marker, fingerprint):
        remove(marker)
        with ShardProgress(layout, Stage.PACK, plan.shard, plan.samples) as progress:
            _write_shard(layout, plan, fingerprint, progress)
    with open_read(marker) as file:
        tar_bytes = file_metadata(pq.read_schema(file))["tar_bytes"]
    return plan.shard, plan.samples, int(tar_bytes)


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


def _fingerprint(layout: DatasetLayout, plan: TrainShardPlan, config: PackConfig) -> str:
    upstream = []
    for piece in plan.pieces:
        paths = [layout.fetched(piece.shard, "_stats.json")]
        if plan.has_levels:
            paths.append(layout.levelled(piece.shard))
        prints = [committed_fingerprint(path) for path in paths]
        if None in prints:
            missing = paths[prints.index(None)]
            raise DatasetError(f"{missing} is missing: run the stage that makes it first")
        upstream.append(f"{piece.shard} {piece.start} {piece.stop} {' '.join(map(str, prints))}")
    settings = {**deciding_settings(config), "members": MEMBERS_VERSION}
    return stage_fingerprint(Stage.PACK, settings, upstream)


def _write_shard(
    layout: DatasetLayout, plan: TrainShardPlan, fingerprint: str, progress: ShardProgress
) -> None:
    rows: list[TrainSample] = []
    with commit_file(layout.train(plan.shard, "tar")) as file:
        output = HashingFile(file)
        with TarWriter(cast(IO[bytes], output)) as tar:
            for piece in plan.pieces:
                for sample, level, images in _samples_of(layout, piece, plan.has_levels):
                    rows.append(_add_sample(tar, sample, level, images))
                    progress.update(len(rows), 0)
    table = table_from_records(rows, TRAIN_SCHEMA)
    metadata = {
        "fingerprint": fingerprint,
        "tar_sha256": output.sha256,
        "tar_bytes": str(output.length),
    }
    with commit_file(layout.train(plan.shard, "parquet")) as file:
        write_table(table, file, metadata)


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

    @property
    def sha256(self) -> str:
        """Hash of what is written so far, 64 hex digits."""
        return self._digest.hexdigest()


def _samples_of(
    layout: DatasetLayout, piece: Piece, has_levels: bool
) -> Iterator[tuple[StoredSample, ScoreAndLevel, tuple[bytes, ...]]]:
    """Yields the samples of a piece with their images, in the order of their keys."""
    with open_read(layout.fetched(piece.shard, "parquet")) as file:
        fetched = read_table(file, FETCHED_SCHEMA, STORED_COLUMNS)
    if has_levels:
        levels = _read_levels(layout, piece)
        fetched = _with_chosen_captions(layout, piece.shard, fetched)
    else:
        fetched = fetched.slice(piece.start, piece.stop - piece.start)
        given = fetched["given_level"].to_pylist()
        levels = {
            key: (None, level) for key, level in zip(fetched["key"].to_pylist(), given, strict=True)
        }
    samples = {
        row["key"]: StoredSample(**row) for row in fetched.to_pylist() if row["key"] in levels
    }
    if len(samples) != len(levels):
        raise DatasetError(
            f"{layout.levelled(piece.shard)} has {len(levels) - len(samples)} keys that "
            "are not among the fetched: run the stages after fetch again"
        )
    names = [name for sample in samples.values() for name in sample.image_members]
    images = read_members(layout, piece.shard, names)
    for key, sample in samples.items():
        yield sample, levels[key], tuple(islice(images, len(sample.image_members)))


def _with_chosen_captions(layout: DatasetLayout, shard: int, fetched: pa.Table) -> pa.Table:
    """Returns the fetched rows, those of several captions with the one that scored best."""
    if fetched["captions"].null_count == fetched.num_rows:
        return fetched
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "caption_index"])
    places = pc.index_in(fetched["key"], value_set=scored["key"].combine_chunks())
    index = pc.fill_null(scored["caption_index"].take(places), 0).to_pylist()
    captions = pa.array(chosen_captions(fetched, index), pa.string())
    column = fetched.schema.get_field_index("caption")
    return fetched.set_column(column, fetched.schema.field(column), captions)


def _read_levels(layout: DatasetLayout, piece: Piece) -> dict[str, ScoreAndLevel]:
    path = layout.levelled(piece.shard)
    columns = ["key", "clip_score", "alignment_level"]
    with open_read(path) as file:
        parquet = pq.ParquetFile(file)
        check_schema(parquet.schema_arrow, LEVELLED_SCHEMA, path)
        table = parquet.read(columns=columns).slice(piece.start, piece.stop - piece.start)
    values = [table[name].to_pylist() for name in columns]
    return {key: (score, level) for key, score, level in zip(*values, strict=True)}


def _add_sample(
    tar: TarWriter, sample: StoredSample, ranked: ScoreAndLevel, images: tuple[bytes, ...]
) -> TrainSample:
    """Adds a sample's members to the tar and returns its row."""
    score, level = ranked
    members = zip(sample.image_members, images, strict=True)
    offsets = [tar.add(name, image) for name, image in members]
    tar.add(f"{sample.key}.txt", sample.caption.encode())
    known = {"clip_score": score, "alignment_level": level}
    tar.add(f"{sample.key}.json", member_json(sample, known))
    return TrainSample(
        **asdict(sample),
        clip_score=score,
        alignment_level=level,
        image_offset=offsets[0] if offsets else None,
        image_bytes=len(images[0]) if images else None,
        more_image_offsets=offsets[1:] or None,
        more_image_bytes=[len(image) for image in images[1:]] or None,
    )
