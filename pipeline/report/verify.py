"""Whether a dataset is whole: everything is read again, and each part held against the others."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline.dataset.manifests import read_manifest
from pipeline.report.verify_counts import count_problems, imbalances
from pipeline.report.verify_shard import ShardCheck, ShardFindings, check_shard
from schemas.command_line import counted
from schemas.errors import DatasetError
from schemas.manifest import Manifest, ShardEntry
from schemas.progress import shown
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, open_read, read_json

CHUNK_BYTES = 1 << 20
MOST_SHOWN = 20
"""Faults that a message lists; the others are counted."""

__all__ = ["Verified", "imbalances", "verify_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found to be whole."""

    shards: int
    samples: int
    read_bytes: int
    is_quick: bool = False

    def __str__(self) -> str:
        more = "" if self.is_quick else ", every sample agrees with its row"
        return (
            f"whole: {counted(self.shards, 'train shard')}, {counted(self.samples, 'sample')}, "
            f"{self.read_bytes:,} bytes match the manifest{more}, and all counts balance"
        )


def verify_dataset(root: str, is_quick: bool = False) -> Verified:
    """Returns what was checked, if all parts of a dataset agree with each other.

    Args:
        is_quick: read the hashes of the train shards and the counts of the manifest alone.

    Raises:
        DatasetError: naming everything that is not as it should be, with file and row.
    """
    layout = DatasetLayout(root)
    manifest = read_manifest(layout)
    problems = [
        *imbalances(manifest),
        *_strangers(layout, manifest),
        *_index_problems(layout, manifest),
    ]
    if is_quick:
        problems += _all_hash_problems(layout, manifest)
    else:
        problems += count_problems(layout, manifest)
        problems += _sample_problems(layout, manifest)
    if problems:
        more = len(problems) - MOST_SHOWN
        raise DatasetError(
            f"{root} is not whole:\n  "
            + "\n  ".join(problems[:MOST_SHOWN])
            + (f"\n  and {more:,} more faults" if more > 0 else "")
            + "\nMake the damaged part again: --redo pack, or an earlier stage"
        )
    return Verified(
        shards=len(manifest.shards),
        samples=manifest.kept,
        read_bytes=sum(entry.tar_bytes + entry.parquet_bytes for entry in manifest.shards),
        is_quick=is_quick,
    )


def _sample_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong with the train shards, several of which are read at once."""
    check = ShardCheck.of(manifest)
    keys = [pa.array([], pa.string())]
    names: list[str] = []
    total = len(manifest.shards)
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as threads:
        findings: Iterator[ShardFindings] = threads.map(
            lambda entry: check_shard(layout, entry, check), manifest.shards
        )
        for found in shown("Verifying", findings, total, unit="shard"):
            yield from found.problems
            keys.append(found.keys)
            names += [found.name] * len(found.keys)
    yield from _repeated_keys(pa.concat_arrays(keys), names)


def _repeated_keys(keys: pa.Array, names: list[str]) -> Iterator[str]:
    """Yields the keys that stand twice, with the shard of the second."""
    counted = keys.value_counts()
    if len(counted) == len(keys):
        return
    seen: set[str] = set()
    for key, name in zip(keys.to_pylist(), names, strict=True):
        if key in seen:
            yield f"train/{name}.parquet: key {key} stands in the dataset twice"
        seen.add(key)


def _strangers(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    known = {entry.name for entry in manifest.shards}
    for path in list_files(layout.folder(Stage.PACK)):
        name = path.rsplit("/", 1)[-1]
        if name.endswith((".tar", ".parquet")) and name.rsplit(".", 1)[0] not in known:
            yield f"train/{name} is not in the manifest"


def _index_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    """Yields what the index for `wids` says otherwise than the manifest."""
    if not exists(layout.train_index):
        yield "train/index.json is missing"
        return
    try:
        found = [
            (shard["url"], shard["nsamples"], shard["filesize"])
            for shard in read_json(layout.train_index)["shardlist"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        yield f"train/index.json is no index: {error!r}"
        return
    wanted = [(f"{e.name}.tar", e.samples, e.tar_bytes) for e in manifest.shards]
    for place, (there, recorded) in enumerate(zip(found, wanted, strict=False)):
        if there != recorded:
            yield f"train/index.json row {place}: {there}, the manifest says {recorded}"
    if len(found) != len(wanted):
        yield f"train/index.json lists {len(found)} shards, the manifest {len(wanted)}"


def _all_hash_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    """Yields the files whose size or hash is not as recorded, several of which are read at once."""
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as threads:
        found = threads.map(lambda entry: [*_hash_problems(layout, entry)], manifest.shards)
        for problems in shown("Hashing", found, len(manifest.shards), unit="shard"):
            yield from problems


def _hash_problems(layout: DatasetLayout, entry: ShardEntry) -> Iterator[str]:
    """Yields the files of a shard whose size or hash is not as recorded."""
    expected = {
        "tar": (entry.tar_bytes, entry.tar_sha256),
        "parquet": (entry.parquet_bytes, entry.parquet_sha256),
    }
    for extension, recorded in expected.items():
        path = layout.train(int(entry.name), extension)
        name = f"train/{entry.name}.{extension}"
        if not exists(path):
            yield f"{name} is missing"
            continue
        found = _size_and_sha256(path)
        if found != recorded:
            yield f"{name} has {found[0]} bytes with SHA-256 {found[1]}, recorded: {recorded}"


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open_read(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
