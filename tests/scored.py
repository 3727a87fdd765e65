"""Fetched shards of small pictures, ready to be scored."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from schemas.columns import table_from_records, write_table
from schemas.records import (
    FETCHED_SCHEMA,
    FetchedSample,
    pair_key,
)
from schemas.shards import DatasetLayout

ROWS = 23


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def make_image(seed: int, image_format: str) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((40 + seed, 48)).save(buffer, image_format)
    return buffer.getvalue()


def make_shard(layout: DatasetLayout, shard: int, rows: int = ROWS) -> list[FetchedSample]:
    """Writes a fetched shard as the fetch stage leaves it."""
    extensions = {"jpg": "jpeg", "png": "png", "webp": "webp"}
    samples = []
    for row in range(rows):
        url, caption = f"https://host.example/{shard}/{row}.jpg", f"caption number {row} of {shard}"
        samples.append(
            FetchedSample(
                key=pair_key(url, caption),
                url=url,
                caption=caption,
                conversations=None,
                source="pairs.csv",
                expected_hash=None,
                image_format=list(extensions)[row % 3],
                width=40 + row,
                height=48,
                original_width=40 + row,
                original_height=48,
                sha256=None,
                pixel_hash=None,
            )
        )
    samples.sort(key=lambda sample: sample.key)
    Path(layout.fetched(shard, "tar")).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(layout.fetched(shard, "tar"), "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, sample in enumerate(samples):
            assert sample.image_format is not None
            image = make_image(row, extensions[sample.image_format])
            add_member(tar, f"{sample.key}.{sample.image_format}", image)
            add_member(tar, f"{sample.key}.txt", sample.caption.encode())
            add_member(tar, f"{sample.key}.json", json.dumps({"key": sample.key}).encode())
    write_table(table_from_records(samples, FETCHED_SCHEMA), layout.fetched(shard, "parquet"))
    Path(layout.fetched(shard, "_stats.json")).write_text(json.dumps({"fingerprint": f"f{shard}"}))
    return samples


def assert_all(found: list[int], expected: set[int]) -> None:
    assert set(found) == expected
