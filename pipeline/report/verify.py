"""Whether a dataset is whole: everything is read again, and each part held against the others."""

import functools
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from pipeline.dataset.manifests import read_manifest
from pipeline.report.verify_counts import count_problems, imbalances
from pipeline.report.verify_shard import ShardCheck, check_shard
from schemas.command_line import counted
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest, ShardEntry
from schemas.progress import shown
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, open_read, read_json

CHUNK_BYTES = 1 << 20
MOST_SHOWN = 20
"""Faults that a message lists; the others are counted."""

PROCESS_BYTES = 1 << 31
"""Size of the train shards from which on processes pay, which take a second or two to start."""

T = TypeVar("T")

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
        ConfigError: if a process was killed while it read, so that nothing is known.
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
        read_bytes=_total_bytes(manifest),
        is_quick=is_quick,
    )


def _sample_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    """Yields what is wrong with the train shards, several of which are read at once."""
    check = ShardCheck.of(manifest)
    keys = [pa.array([], pa.string())]
    names: list[str] = []
    total = len(manifest.shards)
    checked = functools.partial(check_shard, layout, check)
    findings = _at_once(checked, manifest, in_processes=_total_bytes(manifest) >= PROCESS_BYTES)
    for found in shown("Verifying", findings, total, unit="shard"):
        yield from found.problems
        keys.append(found.keys)
        names += [found.name] * len(found.keys)
    yield from _repeated_keys(pa.concat_arrays(keys), names)


def _at_once(
    work: Callable[[ShardEntry], T], manifest: Manifest, *, in_processes: bool
) -> Iterator[T]:
    """Yields what the work makes of each train shard, in their order, all cores being at work.

    Args:
        in_processes: of their own, since threads wait for each other but where they hash and read.

    Raises:
        ConfigError: if one of the processes was killed.
    """
    cores = len(os.sched_getaffinity(0))
    executor: Executor
    if in_processes and cores > 1:
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(cores, context, _leave_interrupts)
    else:
        executor = ThreadPoolExecutor(cores)
    try:
        yield from executor.map(work, manifest.shards)
    except BrokenProcessPool as error:
        raise ConfigError(
            "a process that read train shards was killed, as the system does when memory runs out: "
            "nothing is known of the dataset. Free memory, or let one process read one shard at a "
            "time: taskset -c 0 aligngpt-curate verify …"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Leaves Ctrl-C, which reaches all processes of a terminal, to the one that began."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _total_bytes(manifest: Manifest) -> int:
    return sum(entry.tar_bytes + entry.parquet_bytes for entry in manifest.shards)


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
    hashed = functools.partial(_hash_problems, layout)
    found = _at_once(hashed, manifest, in_processes=False)
    for problems in shown("Hashing", found, len(manifest.shards), unit="shard"):
        yield from problems


def _hash_problems(layout: DatasetLayout, entry: ShardEntry) -> list[str]:
    """Returns the files of a shard whose size or hash is not as recorded."""
    problems = []
    expected = {
        "tar": (entry.tar_bytes, entry.tar_sha256),
        "parquet": (entry.parquet_bytes, entry.parquet_sha256),
    }
    for extension, recorded in expected.items():
        path = layout.train(int(entry.name), extension)
        name = f"train/{entry.name}.{extension}"
        if not exists(path):
            problems.append(f"{name} is missing")
            continue
        found = _size_and_sha256(path)
        if found != recorded:
            problems.append(
                f"{name} has {found[0]} bytes with SHA-256 {found[1]}, recorded: {recorded}"
            )
    return problems


def _size_and_sha256(path: str) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with open_read(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
