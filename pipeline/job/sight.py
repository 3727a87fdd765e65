"""The proof that a worker sees what its job sees: the dataset's folder, the inputs, the model.

On a cluster a path can lead to another disk, or nowhere. That is told before any work, with the
path and what to do, and not found out shard by shard.
"""

import hashlib
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config import CurationConfig
from pipeline.dataset.edges import edges_path
from pipeline.job.lock import holder_of
from pipeline.job.paths import model_paths, writer_paths
from pipeline.read.inputs import InputFile
from schemas.errors import ConfigError, StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    file_system,
    is_local,
    list_files,
    reaching_store,
    read_range,
    remove,
)

MOST_INPUTS = 16
"""Input files that each worker looks at, spread over all: a folder is there or it is not."""

END_BYTES = 64 * 1024
"""What is compared of a file's beginning, and of its end."""

OUTPUT = "the output"

REMEDIES = {
    OUTPUT: (
        "name by --out a folder that all machines share under one path, such as NFS, or an object "
        "store (s3://bucket/folder)"
    ),
    "the input": (
        "put it where all machines find it under one path: a shared folder or an object store"
    ),
    "the file": (
        "put it where all machines find it under one path: a shared folder or an object store"
    ),
    "the model": (
        "put it at the same path on every machine (in the workers' image), or name a model of "
        "open_clip or hf-hub:OWNER/NAME, which each machine downloads once"
    ),
}
"""What a path is for, and what to use where a worker does not see it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the job saw at a path."""

    use: str
    path: str
    seen: str


def sights_of(
    layout: DatasetLayout,
    config: CurationConfig,
    stages: Sequence[Stage],
    inputs: Sequence[InputFile],
) -> tuple[Sight, ...]:
    """Returns what this process sees of all that the stages need; the folder is held by the job.

    Args:
        layout: with an absolute root, as all paths are here.

    Raises:
        ConfigError: if something is not there.
    """
    seen = _seen(needs_of(config, stages, inputs))
    return (Sight(OUTPUT, layout.root, _holder(layout)), *seen)


def needs_of(
    config: CurationConfig, stages: Sequence[Stage], inputs: Sequence[InputFile]
) -> list[tuple[str, str]]:
    """Returns what each path is for, and the path, of all that the stages read besides the dataset.

    Args:
        config: with absolute paths, as all are here.
    """
    step = max(1, len(inputs) // MOST_INPUTS)
    files = [file.path for file in inputs[::step]][:MOST_INPUTS]
    uses = [("the input", path) for path in files]
    read, fetch = config.read, config.fetch
    if Stage.READ in stages:
        uses += [("the file", path) for path in (*read.deny_urls, *read.deny_hosts)]
    if Stage.FETCH in stages:
        uses += [("the input", path) for path in fetch.allow_folders]
        uses += [("the file", path) for path in fetch.deny_hashes]
        uses += [("the file", fetch.ca_file)] if fetch.ca_file else []
    if Stage.SCORE in stages:
        uses += [("the model", path) for path in model_paths(config)]
    if Stage.RECAPTION in stages:
        models = {*model_paths(config), *writer_paths(config)}
        uses += [("the model", path) for path in sorted(models) if ("the model", path) not in uses]
    edges = edges_path(config.levels)
    if Stage.LEVEL in stages and edges is not None:
        uses.append(("the file", edges))
    return uses


def refuse_missing_needs(needs: Sequence[tuple[str, str]]) -> None:
    """Raises `ConfigError` if something that the stages read is not there."""
    _seen(needs)


def refuse_local_needs(needs: Sequence[tuple[str, str]], why: str) -> None:
    """Raises `ConfigError` if a path leads to a disk, for workers that share none."""
    refuse_local_paths([Sight(use, path, "") for use, path in needs], why)


def _seen(needs: Sequence[tuple[str, str]]) -> list[Sight]:
    try:
        return [Sight(use, path, _look(path)) for use, path in needs]
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}, and the job needs it") from error


def refuse_other_sight(sights: Sequence[Sight]) -> None:
    """Proves that this worker sees what the job saw, and may write into the dataset's folder.

    Raises:
        ConfigError: if it does not; it names each path that differs.
        StorageError: if nothing differs, but a store that the job has reached is out of this
            worker's reach, as from a node that is cut off: another worker may reach it.
    """
    host = socket.gethostname()
    problems: list[str] = []
    out_of_reach: list[str] = []
    for sight in sights:
        try:
            problem = _difference(sight)
        except (OSError, StorageError) as error:
            problem = f"{getattr(error, 'strerror', None) or error}"
            if isinstance(error, StorageError) and not is_local(sight.path):
                out_of_reach.append(f"{sight.use} {sight.path} ({problem})")
                continue
        if problem:
            problems.append(f"{sight.use} {sight.path} ({problem}): {REMEDIES[sight.use]}")
    if problems:
        raise ConfigError(
            f"a worker on {host} does not see what this job sees: {'; '.join(problems)}"
        )
    if out_of_reach:
        raise StorageError(f"a worker on {host} is cut off: {'; '.join(out_of_reach)}")


def refuse_local_paths(sights: Sequence[Sight], why: str) -> None:
    """Raises `ConfigError` if a path leads to a disk, for workers that share none."""
    local = [sight for sight in sights if is_local(sight.path)]
    if local:
        named = "; ".join(f"{one.use} {one.path}: {REMEDIES[one.use]}" for one in local)
        raise ConfigError(f"{why}: {named}")


def _difference(sight: Sight) -> str:
    """Returns what is different about a path here; "" if nothing is."""
    if sight.use != OUTPUT:
        return "" if _look(sight.path) == sight.seen else "another file or folder stands there"
    layout = DatasetLayout(sight.path)
    if _holder(layout) != sight.seen:
        return "the job's lock is not in it, so it is another folder"
    probe = f"{layout.run}/.{uuid.uuid4().hex}.sight"
    commit_text(probe, "")
    remove(probe)
    return ""


def _holder(layout: DatasetLayout) -> str:
    holder = holder_of(layout)
    return "" if holder is None else holder.token


def _look(path: str) -> str:
    """Returns what tells a file or folder from another: its size and ends, or its names."""
    filesystem, name = file_system(path)
    with reaching_store(path):
        if filesystem.isdir(name):
            names = [found.rsplit("/", 1)[-1] for found in list_files(path)]
            return _digest("\n".join(names).encode())
        size = int(filesystem.size(name) or 0)
        ends = read_range(path, 0, END_BYTES)
        if size > END_BYTES:
            ends += read_range(path, max(END_BYTES, size - END_BYTES), END_BYTES)
    return f"{size} {_digest(ends)}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
