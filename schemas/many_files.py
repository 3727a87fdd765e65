"""Many files of one folder, read or removed together: a store is not asked for one by one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

from fsspec import AbstractFileSystem

from schemas.storage import (
    explaining_writes,
    file_system,
    is_local,
    local_path,
    reaching_store,
    remove,
    run_checks,
)

AT_ONCE = 10_000
"""Files that are asked for before the first is looked at: a few megabytes of small ones."""

THREADS = 32
"""That wait for a store at the same time, each for a file of its own."""

REMOVED_IN_TURN = 100
"""Files of a disk that a thread removes before it looks for more."""

T = TypeVar("T")

PATTERN_LETTERS = frozenset("*?[")
"""Letters by which the libraries of stores tell a pattern from a name."""


def read_many(paths: Sequence[str]) -> Iterator[bytes | None]:
    """Yields the content of each file, in their order; None of one that is gone.

    Raises:
        StorageError: if the store is out of reach.
    """
    for start in range(0, len(paths), AT_ONCE):
        some = paths[start : start + AT_ONCE]
        yield from map(_read, some) if is_local(some[0]) else _read_remote(some)


def _read(path: str) -> bytes | None:
    try:
        return Path(local_path(path)).read_bytes()
    except FileNotFoundError:
        return None


def _read_remote(paths: Sequence[str]) -> list[bytes | None]:
    filesystem, names = _in_store(paths)
    contents: list[bytes | None] = []
    with reaching_store(paths[0]):
        for found in filesystem.cat_ranges(names, None, None, on_error="return"):
            if isinstance(found, Exception) and not isinstance(found, FileNotFoundError):
                raise found
            contents.append(found if isinstance(found, bytes) else None)
    return contents


def map_files(read: Callable[[str], T], paths: Iterable[str]) -> Iterator[T]:
    """Yields what a function reads of each file, in their order; of a store, several at once.

    A file of a disk is there at once: those are read one by one, when they are asked for.
    """
    coming = iter(paths)
    first = next(coming, None)
    if first is None:
        return
    if is_local(first):
        yield read(first)
        yield from map(read, coming)
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="store") as pool:
        waiting: deque[Future[T]] = deque([pool.submit(read, first)])
        waiting.extend(pool.submit(read, path) for path in islice(coming, THREADS - 1))
        try:
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(read, path) for path in islice(coming, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def remove_many(paths: Sequence[str]) -> None:
    """Removes files that were seen to stand in one folder; one that is gone is passed over.

    Raises:
        StorageError: if the store is out of reach.
    """
    if not paths:
        return
    run_checks()
    if is_local(paths[0]):
        _remove_local(paths)
        return
    if not PATTERN_LETTERS.isdisjoint(paths[0]):
        for path in paths:
            remove(path)
        return
    filesystem, names = _in_store(paths)
    with reaching_store(paths[0]), suppress(FileNotFoundError):
        filesystem.rm(names)


def _remove_local(paths: Sequence[str]) -> None:
    """Removes files of a disk, many at the same time.

    Each waits for the disk where it is a network's, or is told of every block that is free.
    """
    some = [
        paths[start : start + REMOVED_IN_TURN] for start in range(0, len(paths), REMOVED_IN_TURN)
    ]
    folder = Path(local_path(paths[0])).parent
    with explaining_writes(paths[0], folder), ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(_unlink, some):
            pass


def _unlink(paths: Sequence[str]) -> None:
    for path in paths:
        Path(local_path(path)).unlink(missing_ok=True)


def _in_store(paths: Sequence[str]) -> tuple[AbstractFileSystem, list[str]]:
    """Returns the store of a folder's files, and their names there."""
    filesystem, first = file_system(paths[0])
    folder = first.rpartition("/")[0]
    return filesystem, [f"{folder}/{path.rpartition('/')[2]}" for path in paths]
