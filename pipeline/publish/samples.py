"""The samples of a dataset on their way to a publication: their split, and what may be said."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.dataset.train_samples import TarReaders, image_places, read_kept_fields, read_rows
from schemas.manifest import Manifest
from schemas.progress import shown
from schemas.records import hash_share, json_text
from schemas.shards import DatasetLayout
from schemas.storage import absolute_path, is_local, local_path

TRAIN, VALIDATION = "train", "validation"

COUNTED = [
    "key",
    "url",
    "image_format",
    "image_offset",
    "image_bytes",
    "more_image_offsets",
    "more_image_bytes",
    "alignment_level",
    "clip_score",
    "conversations",
]


@dataclass(slots=True)
class Counts:
    """What there is to publish."""

    samples: Counter[str] = field(default_factory=Counter)
    """Split to its samples."""
    image_bytes: int = 0
    images: int = 0
    conversations: int = 0
    image_fields: set[str] = field(default_factory=set)
    """Endings of the image members: jpg, 1.jpg, …"""
    levels: dict[int, list[float]] = field(default_factory=dict)
    """Level to samples, lowest and highest score."""


@dataclass(frozen=True, slots=True)
class Publishable:
    """A finished dataset, and how it is split."""

    layout: DatasetLayout
    manifest: Manifest
    validation_ratio: float

    @property
    def image_folders(self) -> list[str]:
        """Folders that images were read from, of the datasets that it was made from, too."""
        configs = [self.manifest.config, *(parent.config for parent in self.manifest.parents)]
        return [folder for config in configs for folder in config["fetch"]["allow_folders"]]

    def kept_fields(self) -> list[pa.Field]:
        """Returns the columns of the input's own."""
        return read_kept_fields(self.layout, [int(entry.name) for entry in self.manifest.shards])

    def split_of(self, row: dict[str, Any]) -> str:
        """Returns the split of a row; the same as the trainer holds out by the same ratio."""
        is_held_out = hash_share(row["url"] or row["key"]) < self.validation_ratio
        return VALIDATION if is_held_out else TRAIN

    def count(self) -> Counts:
        """Returns what there is, from the tables alone."""
        counts = Counts()
        for entry in shown(
            "Counting", self.manifest.shards, len(self.manifest.shards), unit="shard"
        ):
            for table in read_rows(self.layout, int(entry.name), COUNTED):
                for row in table.to_pylist():
                    _count(counts, row, self.split_of(row))
        return counts

    def samples(
        self, split: str, skip: Sequence[bool], samples_per_shard: int, readers: TarReaders
    ) -> Iterator[tuple[dict[str, Any], tuple[bytes, ...]]]:
        """Yields the rows of a split with their images.

        Args:
            skip: of each shard that is to be written, whether it stands; its rows come without
                their images, which are not read.
        """
        number = 0
        for entry in self.manifest.shards:
            tar = self.layout.train(int(entry.name), "tar")
            for table in read_rows(self.layout, int(entry.name)):
                for row in table.to_pylist():
                    if self.split_of(row) != split:
                        continue
                    is_there = skip[number // samples_per_shard]
                    number += 1
                    yield row, () if is_there else readers.images(tar, row)


def _count(counts: Counts, row: dict[str, Any], split: str) -> None:
    counts.samples[split] += 1
    counts.conversations += row["conversations"] is not None
    for name, _, length in image_places(row):
        counts.images += 1
        counts.image_bytes += length
        counts.image_fields.add(name.split(".", 1)[1])
    level, score = row["alignment_level"], row["clip_score"]
    if level is not None and score is not None:
        known = counts.levels.setdefault(level, [0, 2.0, -2.0])
        known[:] = [known[0] + 1, min(known[1], score), max(known[2], score)]


def sayable(row: dict[str, Any], folders: Sequence[str]) -> dict[str, Any]:
    """Returns a row without what says where files lay on the machine that made it.

    Args:
        folders: that images were read from; paths are published as seen from there.
    """
    if row["url"] is None:
        return row
    more = row.get("more_urls")
    if more is not None:
        more = json_text([_seen_from(url, folders) for url in json.loads(more)])
    return {**row, "url": _seen_from(row["url"], folders), "more_urls": more}


def _seen_from(url: str, folders: Sequence[str]) -> str:
    """Returns a path as seen from the first of the folders that it lies in, or its name alone."""
    if not is_local(url):
        return url
    path = local_path(url)
    for folder in folders:
        base = absolute_path(folder).rstrip("/") + "/"
        if path.startswith(base):
            return path.removeprefix(base)
    return path.rsplit("/", 1)[-1]
