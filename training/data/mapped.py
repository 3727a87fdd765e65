"""Folders of arrays that one process of a machine writes and all of them map.

What is mapped lies on disk: the system reads it when it is looked at and may forget it again, and
all processes of a machine share it. So hundreds of millions of rows, and the plan of an epoch of
them, cost a process next to no memory of its own.

A folder's name is a hash of all that decides what is in it. It is written aside and renamed, with
a record of its files: one that is not whole is not read, one without a record is someone else's.
Who comes while another process writes waits for its lock, which ends with that process.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from schemas.disk import is_out_of_room, written_whole
from schemas.errors import ConfigError, StorageError
from schemas.progress import at_work, is_first_process
from schemas.terminal import Console

RECORD = "contents.json"
"""Names and sizes of a folder's files; of one that is being written, none yet."""
HELD_ROWS = 100_000
"""Of fewer rows each process works out by itself what it needs, which takes less than a second, and
nothing is written where others look."""
SAID_BYTES = 10**8
"""From so many on, a line says what is written and what room there is."""
PIECE = 2**20
"""Numbers that are worked on at once."""
SORTED_AT_ONCE = 2**22
"""Numbers that are sorted in memory."""
MOST_PARTS = 255
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What storage without locks says."""

ANOTHER_FOLDER = "give another folder by --data.rows-folder"
ANOTHER_TEMPORARY_FOLDER = "name another folder for temporary files by TMPDIR"

T = TypeVar("T")


class MappedFolders:
    """The folders below a root, each written once; without a root, of this process alone.

    Args:
        held_rows: of fewer rows a folder is this process's own, too.
    """

    def __init__(self, root: Path | None = None, held_rows: int = HELD_ROWS) -> None:
        self._root, self._held_rows = root, held_rows
        self._used: set[str] = set()

    def opened(
        self,
        name: str,
        write: Callable[[Path], None],
        read: Callable[[Path], T],
        *,
        rows: int,
        num_bytes: int = 0,
    ) -> T:
        """Returns what `read` maps of a folder, which `write` fills first where it is not there.

        Args:
            name: with a hash of all that decides what is in it.
            rows: that it is about. A folder of this process's own is gone at once: what is mapped
                of it stays.
            num_bytes: about what it will take.

        Raises:
            ConfigError: if there is no room for it, it cannot be written where it is to be, or
                something else stands there.
            StorageError: if the disk takes no more.
        """
        if self._root is None or rows < self._held_rows:
            with _temporary_folder(num_bytes) as folder:
                write(folder)
                return read(folder)
        self._used.add(name)
        folder = self._root / name
        if not _is_whole(folder):
            with self._locked(name):
                if not _is_whole(folder):
                    self._write(folder, write, num_bytes)
        return read(folder)

    def remove_others(self) -> None:
        """Removes what earlier runs wrote below the root and nobody opened here."""
        self._remove(self._used)

    def remove(self) -> None:
        """Removes all that was written below the root, and the root if nothing else is in it."""
        self._remove(set())
        if self._root is not None:
            with suppress(OSError):  # something else is in it, or it is not there
                self._root.rmdir()

    def _remove(self, kept: set[str]) -> None:
        if self._root is None or not self._root.is_dir():
            return
        for folder in list(self._root.iterdir()):
            name = folder.name.removeprefix(".").removesuffix(".tmp")
            if name not in kept and _sizes(folder) is not None:
                with self._locked(name):
                    shutil.rmtree(folder, ignore_errors=True)
                    self._lock(name).unlink(missing_ok=True)

    def _write(self, folder: Path, write: Callable[[Path], None], num_bytes: int) -> None:
        if folder.exists() and _sizes(folder) is None:
            raise ConfigError(
                f"{folder} stands where a run keeps what it reads, and no run wrote it: move it "
                f"elsewhere, or {ANOTHER_FOLDER}"
            )
        words = _check_room(folder.parent, num_bytes, ANOTHER_FOLDER)
        if num_bytes >= SAID_BYTES and is_first_process():
            Console(stderr=True).print(f"writing {folder.name}: {words}", highlight=False)
        with written_whole(folder) as aside:
            aside.mkdir()
            (aside / RECORD).write_text(json.dumps({}))  # ours, not whole
            write(aside)
            files = [path for path in aside.iterdir() if path.name != RECORD]
            for path in files:
                _sync(path)
            sizes = {path.name: path.stat().st_size for path in files}
            (aside / RECORD).write_text(json.dumps(sizes))
            _sync(aside / RECORD)

    def _lock(self, name: str) -> Path:
        assert self._root is not None
        return self._root / f".{name}.lock"

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Waits until no other process writes a folder; one that dies holds nothing."""
        path = self._lock(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a")
        except OSError as error:
            raise ConfigError(
                f"{path.parent} cannot be written ({error.strerror}): give another folder for the "
                "rows of the data by --data.rows-folder"
            ) from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    raise ConfigError(
                        f"{path.parent} is on storage without locks: give a folder of this machine "
                        "by --data.rows-folder"
                    ) from error
                with at_work(f"waiting for another process that writes {name}"):
                    fcntl.lockf(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _temporary_folder(num_bytes: int) -> Iterator[Path]:
    """Yields a folder that is gone at once, which leaves what was mapped of it."""
    with tempfile.TemporaryDirectory(prefix="aligngpt-rows-") as name:
        _check_room(Path(name), num_bytes, ANOTHER_TEMPORARY_FOLDER)
        try:
            yield Path(name)
        except OSError as error:
            if not is_out_of_room(error):
                raise
            raise StorageError(
                f"{name} could not be written ({error}): make room, or {ANOTHER_TEMPORARY_FOLDER}"
            ) from error


def _check_room(folder: Path, num_bytes: int, remedy: str) -> str:
    """Returns what room will be taken, in words.

    Raises:
        ConfigError: if it is worth a word and there is not so much.
    """
    free = shutil.disk_usage(folder).free
    words = f"about {num_bytes / 1e9:,.1f} GB in {folder}, where {free / 1e9:,.1f} GB are free"
    if num_bytes > max(free, SAID_BYTES):
        raise ConfigError(f"the rows of the data need {words}: make room, or {remedy}")
    return words


def _sizes(folder: Path) -> dict[str, int] | None:
    """Returns what a folder's record says of its files; None if it has none, and is not ours."""
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_whole(folder: Path) -> bool:
    sizes = _sizes(folder) or {}
    try:
        return bool(sizes) and all((folder / n).stat().st_size == s for n, s in sizes.items())
    except OSError:
        return False


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def digest_of(*made_of: object) -> str:
    """Returns a hash of what decides what is in a folder, each by its text."""
    text = json.dumps([str(part) for part in made_of])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def index_type(rows: int) -> Any:
    """Returns the dtype of numbers of rows, of which `~row` must be one, too."""
    return np.int32 if rows < 2**31 else np.int64


def map_array(path: Path, dtype: Any, *, is_writable: bool = False) -> np.ndarray:
    """Returns the numbers in a file, (n,), mapped."""
    if not path.stat().st_size:
        return np.empty(0, dtype)
    # A plain array over the file: numpy shuffles those in place, and no others.
    return np.asarray(np.memmap(path, dtype, mode="r+" if is_writable else "r"))


def write_array(path: Path, pieces: Iterable[np.ndarray]) -> None:
    """Writes arrays of (n,) one after the other."""
    with path.open("wb") as file:
        for piece in pieces:
            file.write(np.ascontiguousarray(piece).data)


def pieces_of(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields where pieces of an array begin, and the pieces."""
    for start in range(0, len(values), PIECE):
        yield start, values[start : start + PIECE]


def stable_order(values: np.ndarray, at_once: int = SORTED_AT_ONCE) -> Iterator[np.ndarray]:
    """Yields, piece by piece, the places of (n,) values as they ascend; equal ones stay in order.

    Of many, those between two values are sorted at a time, so that few are held in memory.
    """
    if len(values) <= at_once:
        yield np.argsort(values, kind="stable")
        return
    parts = min(MOST_PARTS, -(-len(values) // at_once) + 1)
    some = np.sort(values[:: max(1, len(values) // (100 * parts))])
    each = max(1, len(some) // parts)
    edges = some[each::each][:MOST_PARTS]
    part = np.empty(len(values), np.uint8)
    for start, piece in pieces_of(values):
        part[start : start + len(piece)] = np.searchsorted(edges, piece, side="right")
    for number in range(len(edges) + 1):
        members = np.flatnonzero(part == number)
        yield members[np.argsort(values[members], kind="stable")]
