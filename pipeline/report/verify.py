"""Whether a dataset is whole: what lies on disk against what the manifest says."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.dataset.manifests import read_manifest
from schemas.errors import DatasetError
from schemas.manifest import Manifest, ShardEntry
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, open_read

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was found to be whole."""

    shards: int
    samples: int
    read_bytes: int

    def __str__(self) -> str:
        return (
            f"whole: {self.shards} train shards, {self.samples:,} samples, "
            f"{self.read_bytes:,} bytes match the manifest, and all counts balance"
        )


def verify_dataset(root: str) -> Verified:
    """Returns what was checked, if every train shard is as recorded and all counts balance.

    Raises:
        DatasetError: naming everything that is not as it should be.
    """
    layout = DatasetLayout(root)
    manifest = read_manifest(layout)
    problems = [*imbalances(manifest), *_strangers(layout, manifest)]
    for number, entry in enumerate(manifest.shards):
        problems += _shard_problems(layout, number, entry)
    if problems:
        raise DatasetError(
            f"{root} is not whole:\n  "
            + "\n  ".join(problems)
            + "\nMake the damaged part again: --redo pack, or an earlier stage"
        )
    return Verified(
        shards=len(manifest.shards),
        samples=manifest.kept,
        read_bytes=sum(entry.tar_bytes + entry.parquet_bytes for entry in manifest.shards),
    )


def imbalances(manifest: Manifest) -> Iterator[str]:
    """Yields every count of the manifest that contradicts another."""
    before: tuple[str, int] | None = None
    for stage, counts in manifest.stages.items():
        rejected = sum(counts.rejected.values())
        if counts.rows_in != counts.kept + rejected:
            yield f"{stage}: {counts.rows_in} rows in, but {counts.kept} kept + {rejected} rejected"
        if before is not None and counts.rows_in != before[1]:
            yield f"{stage}: {counts.rows_in} rows in, but {before[0]} kept {before[1]}"
        before = (stage, counts.kept)
    rejected = sum(manifest.rejected.values())
    if manifest.rows_in != manifest.kept + rejected:
        yield f"{manifest.rows_in} rows in, but {manifest.kept} kept + {rejected} rejected"
    samples = sum(entry.samples for entry in manifest.shards)
    if samples != manifest.kept:
        yield f"the train shards hold {samples} samples, but {manifest.kept} were kept"


def _strangers(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    known = {entry.name for entry in manifest.shards}
    for path in list_files(layout.folder(Stage.PACK)):
        name = path.rsplit("/", 1)[-1]
        if name.endswith((".tar", ".parquet")) and name.rsplit(".", 1)[0] not in known:
            yield f"train/{name} is not in the manifest"


def _shard_problems(layout: DatasetLayout, number: int, entry: ShardEntry) -> Iterator[str]:
    expected = {
        "tar": (entry.tar_bytes, entry.tar_sha256),
        "parquet": (entry.parquet_bytes, entry.parquet_sha256),
    }
    for extension, recorded in expected.items():
        path = layout.train(number, extension)
        name = f"train/{entry.name}.{extension}"
        if not exists(path):
            yield f"{name} is missing"
            continue
        found = _size_and_sha256(path)
        if found != recorded:
            yield f"{name} has {found[0]} bytes with SHA-256 {found[1]}, recorded: {recorded}"
        elif extension == "parquet":
            with open_read(path) as file:
                rows = pq.ParquetFile(file).metadata.num_rows
            if rows != entry.samples:
                yield f"{name} has {rows} rows, recorded: {entry.samples}"


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open_read(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
