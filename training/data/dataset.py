"""Datasets as they lie on disk: their rows mapped, their images read from the tars on demand."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.storage import read_bytes, read_range
from training.data.mapped import (
    PIECE,
    MappedFolders,
    digest_of,
    index_type,
    map_array,
    pieces_of,
    stable_order,
    write_array,
)
from training.data.rows import HASHES, ROWS_VERSION, MappedRows, bytes_of_copy, write_rows

LOOKED_AT = 100
"""Samples of a folder by which it is told whether it is one of text alone."""


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

    They are mapped from a copy on disk, and images are not touched until asked for.

    Args:
        kept: where the copy goes; by default into a temporary folder.

    Raises:
        ConfigError: if a folder is no dataset, or holds no samples.
        DatasetError: if it is not whole, or of another version.
        StorageError: if there is no room for the copy.
    """

    def __init__(self, folders: Sequence[str], kept: MappedFolders | None = None) -> None:
        if not folders:
            raise ConfigError("no dataset folder given: --data DIR")
        self.folders = tuple(folders)
        layouts = [DatasetLayout(folder) for folder in folders]
        manifests = [_read_manifest(layout) for layout in layouts]
        self.fingerprints = tuple(manifest_fingerprint(manifest) for manifest in manifests)
        """Of each folder, a hash of what its manifest says of its shards."""
        self.sizes = tuple(sum(e.samples for e in manifest.shards) for manifest in manifests)
        """Samples of each folder."""
        for folder, size in zip(folders, self.sizes, strict=True):
            if size == 0:
                raise ConfigError(f"{folder} holds no samples")
        self._ends = np.cumsum(self.sizes)
        self._tars = [
            [layout.train(int(entry.name), "tar") for entry in manifest.shards]
            for layout, manifest in zip(layouts, manifests, strict=True)
        ]
        self.kept = kept or MappedFolders()
        self._rows = [
            _mapped_rows(self.kept, layout, manifest)
            for layout, manifest in zip(layouts, manifests, strict=True)
        ]
        self.by_key = _order_of_keys(self.kept, self._rows, self.fingerprints)
        """(samples,) their numbers in the order of their keys; equal keys in that of their rows."""
        levels = [rows.levels for rows in self._rows]
        self.levels = levels[0] if len(levels) == 1 else np.concatenate(levels)
        """(samples,) int8 from 1 on; 0 of those that were never levelled."""
        self.highest_level = int(self.levels.max(initial=0))
        """0 where no sample was levelled."""

    def __len__(self) -> int:
        """Returns the number of samples."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> RawSample:
        """Returns a sample, its image still on disk."""
        folder = int(self.folder_of(index))
        row = self._rows[folder][index - int(self._ends[folder]) + self.sizes[folder]]
        return RawSample(
            key=row["key"],
            caption=row["caption"],
            conversations=row["conversations"],
            alignment_level=row["alignment_level"],
            tar=self._tars[folder][row["shard"]],
            image_ranges=_image_ranges(row),
            sample_id=row["sample_id"],
            image_hashes=_image_hashes(row),
        )

    def folder_of(self, samples: Any) -> np.ndarray:
        """Returns which folder samples are from, of the shape of their numbers."""
        return np.asarray(np.searchsorted(self._ends, samples, side="right"))

    def first_by_key(self, is_wanted: np.ndarray) -> Iterator[int]:
        """Yields the samples that are wanted in the order of their keys.

        Args:
            is_wanted: (samples,) of each.
        """
        for _, samples in pieces_of(self.by_key):
            yield from samples[is_wanted[samples]].tolist()

    def check_levels(self, num_levels: int, *, are_told: bool) -> None:
        """Raises ConfigError if a model of so many levels has no vector for some of these.

        Args:
            are_told: whether the model is told the level of each picture, as in stage 1.
        """
        starts = self._ends - self.sizes
        for folder, rows, start in zip(self.folders, self._rows, starts.tolist(), strict=True):
            if are_told and not rows.levels.any() and self._has_pictures(start, len(rows)):
                raise ConfigError(
                    f"{folder} has no alignment levels, and of each picture with a caption the "
                    "model is told its level: curate the data with the level stage, or train with "
                    "model.alignment_mode none"
                )
        if self.highest_level > num_levels:
            raise ConfigError(
                f"{', '.join(self.folders)}: alignment levels up to {self.highest_level}, but the "
                f"model has {num_levels}: train one with --model.num-levels {self.highest_level}, "
                f"or cut the levels anew with levels.num_levels {num_levels}"
            )

    def _has_pictures(self, start: int, samples: int) -> bool:
        """Returns whether one of the first samples of a folder has a picture."""
        return any(self[start + n].num_images for n in range(min(samples, LOOKED_AT)))

    def is_held_out(self, ratio: float) -> np.ndarray:
        """Returns (samples,) whether each sample is in the held-out share.

        The hash of the (first) picture's address decides, so that it is never on both sides; of
        text alone, the key decides. It changes neither with the order nor with the shards.
        """
        return np.concatenate([rows.shares < ratio for rows in self._rows])


def _mapped_rows(kept: MappedFolders, layout: DatasetLayout, manifest: Manifest) -> MappedRows:
    return kept.opened(
        f"rows-{digest_of(ROWS_VERSION, manifest_fingerprint(manifest))}",
        lambda folder: write_rows(layout, manifest, folder),
        MappedRows,
        rows=sum(entry.samples for entry in manifest.shards),
        num_bytes=bytes_of_copy(manifest),
    )


def _order_of_keys(
    kept: MappedFolders, rows: Sequence[MappedRows], fingerprints: Sequence[str]
) -> np.ndarray:
    """Returns the numbers of all rows in the order of their keys, (samples,)."""
    total = sum(len(some) for some in rows)
    dtype = index_type(total)

    def write(folder: Path) -> None:
        if len(rows) == 1 and rows[0].facts.is_by_key:
            places = (
                np.arange(n, min(n + PIECE, total), dtype=dtype) for n in range(0, total, PIECE)
            )
            write_array(folder / "order", places)
            return
        longest = max(some.facts.longest_key for some in rows)
        text = f"S{max(1, longest)}"
        write_array(
            folder / "keys", (keys.astype(text) for some in rows for keys in some.all_keys())
        )
        order = stable_order(map_array(folder / "keys", text))
        write_array(folder / "order", (places.astype(dtype) for places in order))
        (folder / "keys").unlink()

    return kept.opened(
        f"order-{digest_of(ROWS_VERSION, *fingerprints)}",
        write,
        lambda folder: map_array(folder / "order", dtype),
        rows=total,
        num_bytes=total * np.dtype(dtype).itemsize,
    )


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
    """Returns the fingerprint of the dataset in a folder."""
    return manifest_fingerprint(_read_manifest(DatasetLayout(folder)))


def _read_manifest(layout: DatasetLayout) -> Manifest:
    try:
        text = read_bytes(layout.manifest).decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{layout.root} is no dataset: there is no manifest.json in it. Make one with "
            f"`aligngpt-curate curate --pairs FILE --out {layout.root}`"
        ) from error
    return Manifest.from_json(text)


def _image_ranges(row: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    if row["image_offset"] is None:
        return ()
    offsets = [row["image_offset"], *(row["more_image_offsets"] or ())]
    lengths = [row["image_bytes"], *(row["more_image_bytes"] or ())]
    return tuple(zip(offsets, lengths, strict=True))


def _image_hashes(row: dict[str, Any]) -> tuple[str, ...]:
    count = len(_image_ranges(row))
    hashes = [row["pixel_hash"], *(row[HASHES] or ())]
    hashes += [None] * (count - len(hashes))
    return tuple(hashes[n] or f"{row['key']}/{n}" for n in range(count))


def manifest_fingerprint(manifest: Manifest) -> str:
    """Returns a hash of what a dataset's manifest says of its shards."""
    shards = [[entry.name, entry.samples, entry.parquet_sha256] for entry in manifest.shards]
    return hashlib.blake2b(json.dumps(shards).encode(), digest_size=16).hexdigest()
