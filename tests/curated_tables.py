"""Small fetched, scored and unique tables, as the stages before would have left them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.columns import table_from_records, write_table
from schemas.records import (
    FETCHED_SCHEMA,
    SCORED_SCHEMA,
    UNIQUE_SCHEMA,
    FetchedSample,
    ScoredSample,
    UniqueSample,
    pair_key,
)
from schemas.shards import DatasetLayout
from schemas.storage import commit_file
from scoring.images.thumbnails import thumbnail


@dataclass(frozen=True)
class Row:
    """What a test decides of a pair."""

    name: str
    score: float
    embedding: np.ndarray | None = None
    pixels: str = ""
    caption: str = "a picture"
    source: str = "pairs.csv"
    picture: np.ndarray | None = None
    """What its thumbnail shows: (H, W, 3), uint8."""

    @property
    def url(self) -> str:
        return f"https://example.com/{self.name}"

    @property
    def key(self) -> str:
        return pair_key(self.url, self.caption)


def write_shards(layout: DatasetLayout, shards: Sequence[Sequence[Row]]) -> list[int]:
    """Writes the fetched, scored and unique tables, rows in the order of their keys."""
    for shard, rows in enumerate(shards):
        rows = sorted(rows, key=lambda row: row.key)
        tables = [
            (layout.fetched(shard, "parquet"), [fetched(row) for row in rows], FETCHED_SCHEMA),
            (layout.scored(shard), [scored(row) for row in rows], SCORED_SCHEMA),
            (layout.unique(shard), [unique(row) for row in rows], UNIQUE_SCHEMA),
        ]
        fingerprint = hashlib.sha256(repr(rows).encode()).hexdigest()[:32]
        for path, records, schema in tables:
            with commit_file(path) as file:
                write_table(table_from_records(records, schema), file, {"fingerprint": fingerprint})
    return list(range(len(shards)))


def fetched(row: Row) -> FetchedSample:
    pixels = hashlib.blake2b((row.pixels or row.name).encode(), digest_size=16).hexdigest()
    return FetchedSample(
        key=row.key,
        url=row.url,
        caption=row.caption,
        conversations=None,
        source=row.source,
        expected_hash=None,
        image_format="jpg",
        width=8,
        height=8,
        original_width=8,
        original_height=8,
        sha256="0" * 64,
        pixel_hash=pixels,
        thumbnail=None if row.picture is None else thumbnail(row.picture),
    )


def scored(row: Row) -> ScoredSample:
    embedding = None if row.embedding is None else row.embedding.astype(np.float16)
    return ScoredSample(
        key=row.key,
        clip_score=row.score,
        is_caption_truncated=False,
        image_embedding=embedding,
        text_embedding=None,
    )


def unique(row: Row) -> UniqueSample:
    return UniqueSample(key=row.key, clip_score=row.score, duplicate_count=0)


def read_rows(path: str) -> list[dict]:
    table: pa.Table = pq.read_table(path)
    return table.to_pylist()
