"""Datasets as they lie on disk: their rows in memory, their images read from the tars on demand."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from schemas.columns import read_table
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.records import TRAIN_SCHEMA, hash_share
from schemas.shards import DatasetLayout
from schemas.storage import read_bytes, read_range

COLUMNS = ["key", "sample_id", "url", "caption", "conversations", "alignment_level"]
COLUMNS += ["image_offset", "image_bytes", "more_image_offsets", "more_image_bytes"]
COLUMNS += ["pixel_hash", "more_images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSample:
    """One sample as the dataset has it."""

    key: str
    caption: str
    conversations: str | None
    alignment_level: int | None
    """1..N, or None where the sample was never scored."""
    tar: str
    """Path of the tar that holds the images."""
    image_ranges: tuple[tuple[int, int], ...]
    """First byte and length of each image in the tar; empty for text alone."""
    sample_id: str | None = None
    """LLaVA's `id`, where the file that was curated had one."""
    image_hashes: tuple[str, ...] = ()
    """Of each image's stored pixels; where the dataset has none, key and number of the image."""

    @property
    def name(self) -> str:
        """What messages call it: its key, and its id in the file that was curated."""
        return self.key if self.sample_id is None else f"{self.key} (id {self.sample_id!r})"

    @property
    def num_images(self) -> int:
        """How many pictures there are."""
        return len(self.image_ranges)


class CorruptImage(DatasetError):
    """The picture of a sample cannot be read; the message names shard and key."""


class TrainDataset:
    """The rows of one or several dataset folders, one after the other, numbered from 0.

    The texts stay in Arrow's compact memory; images are not touched until asked for.

    Raises:
        ConfigError: if a folder is no dataset, or holds no samples.
        DatasetError: if it is not whole, or of another version.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        if not folders:
            raise ConfigError("no dataset folder given: --data DIR")
        self.folders = tuple(folders)
        tables: list[pa.Table] = []
        tars: list[str] = []
        fingerprints = []
        sizes = []
        for folder in folders:
            layout = DatasetLayout(folder)
            manifest = _read_manifest(layout)
            fingerprints.append(_fingerprint(manifest))
            size = 0
            for entry in manifest.shards:
                table = _read_rows(layout, int(entry.name), entry.samples)
                shard = pa.array(np.full(len(table), len(tars), dtype=np.int32))
                tables.append(table.append_column("shard", shard))
                tars.append(layout.train(int(entry.name), "tar"))
                size += len(table)
            if size == 0:
                raise ConfigError(f"{folder} holds no samples")
            sizes.append(size)
        self._rows = pa.concat_tables(tables).combine_chunks()
        self._tars = tars
        self.fingerprints = tuple(fingerprints)
        """Of each folder, a hash of what its manifest says of its shards."""
        self.dataset_index = np.repeat(np.arange(len(sizes)), sizes)
        """(samples,) which folder a sample is from."""
        self.keys: list[str] = self._rows.column("key").to_pylist()
        self.levels = np.asarray(pc.fill_null(self._rows.column("alignment_level"), 0), np.int64)
        """(samples,) from 1 on; 0 of those that were never levelled."""
        self.highest_level = int(self.levels.max(initial=0))
        """0 where no sample was levelled."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self.keys)

    def __getitem__(self, index: int) -> RawSample:
        """Returns a sample, its image still on disk."""
        row = self._rows.slice(index, 1).to_pylist()[0]
        return RawSample(
            key=row["key"],
            caption=row["caption"],
            conversations=row["conversations"],
            alignment_level=row["alignment_level"],
            tar=self._tars[row["shard"]],
            image_ranges=_image_ranges(row),
            sample_id=row["sample_id"],
            image_hashes=_image_hashes(row),
        )

    def check_levels(self, num_levels: int) -> None:
        """Raises ConfigError if a model of so many levels has no vector for some of these."""
        if self.highest_level > num_levels:
            raise ConfigError(
                f"{', '.join(self.folders)}: alignment levels up to {self.highest_level}, but the "
                f"model has {num_levels}: train one with --model.num-levels {self.highest_level}, "
                f"or cut the levels anew with levels.num_levels {num_levels}"
            )

    def is_held_out(self, ratio: float) -> np.ndarray:
        """Returns (samples,) whether each sample is in the held-out share.

        The hash of the (first) picture's address decides, so that it is never on both sides; of
        text alone, the key decides. It changes neither with the order nor with the shards.
        """
        urls = self._rows.column("url").to_pylist()
        names = [url or key for url, key in zip(urls, self.keys, strict=True)]
        return np.array([hash_share(name) < ratio for name in names], dtype=bool)


def open_images(sample: RawSample) -> list[Image.Image]:
    """Returns a sample's pictures, decoded, in their order.

    Raises:
        CorruptImage: if one cannot be decoded, naming shard and key.
        DatasetError: if the shard is not there or cannot be read, which is no sample's fault.
    """
    return [_open_image(sample, offset, length) for offset, length in sample.image_ranges]


def _open_image(sample: RawSample, offset: int, length: int) -> Image.Image:
    try:
        data = read_range(sample.tar, offset, length)
    except OSError as error:
        raise DatasetError(
            f"the image of {sample.name} cannot be read, since {sample.tar} cannot ({error}): "
            "bring the shard back, or curate again; --data.on-corrupt skip leaves out no shards"
        ) from error
    try:
        if len(data) != length:
            raise EOFError(f"the file ends after {len(data)} of {length} bytes")
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImage(
            f"the image of {sample.name} in {sample.tar} cannot be decoded ({error}): the shard is "
            "damaged; `aligngpt-curate verify` finds such shards, and --data.on-corrupt skip "
            "trains without such samples"
        ) from error
    return image


def dataset_fingerprint(folder: str) -> str:
    """Returns a hash of what a dataset's manifest says of its shards."""
    return _fingerprint(_read_manifest(DatasetLayout(folder)))


def _read_manifest(layout: DatasetLayout) -> Manifest:
    try:
        text = read_bytes(layout.manifest).decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{layout.root} is no dataset: there is no manifest.json in it. Make one with "
            f"`aligngpt-curate curate --pairs FILE --out {layout.root}`"
        ) from error
    return Manifest.from_json(text)


def _read_rows(layout: DatasetLayout, shard: int, samples: int) -> pa.Table:
    path = layout.train(shard, "parquet")
    table = read_table(io.BytesIO(read_bytes(path)), TRAIN_SCHEMA, columns=COLUMNS)
    if len(table) != samples:
        raise DatasetError(
            f"{path} has {len(table)} rows, the manifest says {samples}: curate it again"
        )
    return table.replace_schema_metadata(None)


def _image_ranges(row: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    if row["image_offset"] is None:
        return ()
    offsets = [row["image_offset"], *(row["more_image_offsets"] or ())]
    lengths = [row["image_bytes"], *(row["more_image_bytes"] or ())]
    return tuple(zip(offsets, lengths, strict=True))


def _image_hashes(row: dict[str, Any]) -> tuple[str, ...]:
    count = len(_image_ranges(row))
    hashes = [row["pixel_hash"], *(more["pixel_hash"] for more in row["more_images"] or ())]
    hashes += [None] * (count - len(hashes))
    return tuple(hashes[n] or f"{row['key']}/{n}" for n in range(count))


def _fingerprint(manifest: Manifest) -> str:
    shards = [[entry.name, entry.samples, entry.parquet_sha256] for entry in manifest.shards]
    return hashlib.blake2b(json.dumps(shards).encode(), digest_size=16).hexdigest()
