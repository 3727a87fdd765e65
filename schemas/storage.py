"""Files that appear whole or not at all, locally and on any object store fsspec knows."""

import errno
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from schemas.columns import file_metadata
from schemas.errors import StorageError
from schemas.local_folders import local_files, local_sizes
from schemas.shards import is_stage_file

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LEAVE = (errno.EROFS, errno.EACCES, errno.EPERM)

_CHECKS: list[Callable[[], None]] = []
"""What this process does before each change to what others see."""


def check_before_changes(check: Callable[[], None]) -> None:
    """Has a function called before each change to what stands under a path, from now on."""
    _CHECKS.append(check)


def run_checks() -> None:
    """Does what this process is to do before a change."""
    for check in _CHECKS:
        check()


@contextmanager
def commit_file(path: str) -> Iterator[IO[bytes]]:
    """Opens a new file that stands under `path` once the block ends without an error.

    Locally it is written beside its place, synced and renamed; on an object store it is put at
    once. Whatever stood there before stays until that moment.

    Raises:
        StorageError: if the disk is full, or the place cannot be written to.
    """
    if not is_local(path):
        with commit_remote(path) as file:
            yield file
        return
    target = Path(local_path(path))
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with explaining_writes(path, target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            run_checks()
            aside.replace(target)
    finally:
        with suppress(OSError):  # a disk that takes no writes does not let go of a name either
            aside.unlink(missing_ok=True)


@contextmanager
def commit_remote(path: str) -> Iterator[IO[bytes]]:
    """Opens a temporary local file that is uploaded to `path` when the block ends well.

    Raises:
        StorageError: if the disk of temporary files is full, or the store refuses the file.
    """
    filesystem, name = file_system(path)
    with tempfile.TemporaryDirectory(prefix="aligngpt-") as folder:
        local = Path(folder) / "upload"
        writing = explaining_writes(f"{local}, on its way to {path}", Path(folder))
        with writing, local.open("wb") as file:
            yield file
        run_checks()
        try:
            with reaching_store(path):
                filesystem.put_file(str(local), name)
        except OSError as error:
            raise StorageError(
                f"cannot write {path}: {error.strerror or error}. Check that the bucket exists "
                "and that this job's credentials may write to it"
            ) from error


@contextmanager
def reaching_store(path: str) -> Iterator[None]:
    """Says of what the library of an object store raises in a block that it is out of reach.

    No connection, no credentials, a broken answer: such errors of botocore and of others have no
    kind in common. What an operating system could say too passes, a file that is not there first.

    Raises:
        StorageError: in place of any error but an `OSError`.
    """
    try:
        yield
    except (OSError, StorageError):
        raise
    except Exception as error:
        raise StorageError(
            f"cannot reach {path}: {type(error).__name__}: {error}. Check the network, the "
            "store's address and this job's credentials"
        ) from error


@contextmanager
def explaining_writes(path: str, folder: Path) -> Iterator[None]:
    """Says of writes in a block that fail for want of room or leave what stands in the way.

    Args:
        folder: on the disk that is written to.

    Raises:
        StorageError: in place of the error of the operating system.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        code = _error_of_disk(error, folder)
        if code is None:
            raise
        raise StorageError(write_failure(path, folder, code)) from error


def _error_of_disk(error: BaseException, folder: Path) -> int | None:
    """Returns the number of the disk's error behind an error, if there is one.

    Who closes an archive on a full disk may raise another error over the disk's.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and (
            seen.errno in NO_ROOM or (seen.errno in NO_LEAVE and _is_about(seen, folder))
        ):
            return seen.errno
        seen = seen.__cause__ or seen.__context__
    return None


def _is_about(error: OSError, folder: Path) -> bool:
    """Returns whether an error names a file in a folder, the folder, or one that it lies in."""
    named = Path(str(error.filename))
    return named.is_relative_to(folder) or folder.is_relative_to(named)


def write_failure(path: str, folder: Path, code: int) -> str:
    """Returns what to tell a person whose disk did not take a file."""
    reason = os.strerror(code)
    if code not in NO_ROOM:
        return (
            f"cannot write {path}: {reason}. Give this user leave to write there, mount the disk "
            "for writing, or use another --out"
        )
    if code == errno.EFBIG:
        return (
            f"cannot write {path}: {reason}: a limit (ulimit -f) or the disk's format takes no "
            "file of that size. Raise the limit, or use another disk"
        )
    return (
        f"cannot write {path}: {reason} ({room_of(folder)}). Make room there, or move the "
        "dataset's folder to a larger disk and name it by --out"
    )


def room_of(folder: Path) -> str:
    """Returns how much room the disk of a folder has, in words."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return f"{usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.1f} MB free on the disk of {folder}"


def commit_text(path: str, text: str) -> None:
    """Writes a text that stands under `path` whole or not at all."""
    with commit_file(path) as file:
        file.write(text.encode())


def open_read(path: str) -> IO[bytes]:
    """Opens a file to read its bytes. Seekable, on object stores too.

    Raises:
        StorageError: if the store is out of reach; what is read later, wrap in `reaching_store`.
    """
    if is_local(path):
        return Path(local_path(path)).open("rb")
    filesystem, name = file_system(path)
    with reaching_store(path):
        return cast(IO[bytes], filesystem.open(name, "rb"))


def read_bytes(path: str) -> bytes:
    """Returns the content of a small file in one request.

    What `open_read` gives fails on an object store where another writes the file anew meanwhile.

    Raises:
        FileNotFoundError: if there is none.
        StorageError: if the store is out of reach.
    """
    if is_local(path):
        return Path(local_path(path)).read_bytes()
    filesystem, name = file_system(path)
    with reaching_store(path):
        return cast(bytes, filesystem.cat_file(name))


def read_range(path: str, start: int, length: int) -> bytes:
    """Returns the bytes of a part of a file, fewer where it ends before; in one request.

    Raises:
        OSError: if it cannot be read.
        StorageError: if the store is out of reach.
    """
    if is_local(path):
        descriptor = os.open(local_path(path), os.O_RDONLY)
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)
    filesystem, name = file_system(path)
    with reaching_store(path):
        return cast(bytes, filesystem.cat_file(name, start=start, end=start + length))


def read_json(path: str) -> dict[str, Any]:
    """Returns the object in a small JSON file, as `read_bytes` reads it."""
    values: dict[str, Any] = json.loads(read_bytes(path))
    return values


def file_system(path: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of a path or URL, and the file's name there.

    It remembers no listing: other workers write to the same folders all the while.
    """
    if is_local(path):
        found: tuple[AbstractFileSystem, str] = url_to_fs(path)
        return found
    with reaching_store(path):
        found = url_to_fs(path, use_listings_cache=False)
        return found


def exists(path: str) -> bool:
    """Returns whether there is a file or folder at `path`."""
    if is_local(path):
        return os.path.exists(local_path(path))  # noqa: PTH110 (asked for each of many shards)
    filesystem, name = file_system(path)
    with reaching_store(path):
        return bool(filesystem.exists(name))


def is_folder(path: str) -> bool:
    """Returns whether a path leads to a folder of this machine."""
    return is_local(path) and Path(local_path(path)).is_dir()


def remove(path: str) -> None:
    """Removes the file at `path`, if there is one."""
    run_checks()
    if is_local(path):
        here = Path(local_path(path))
        with explaining_writes(path, here.parent):
            here.unlink(missing_ok=True)
        return
    filesystem, name = file_system(path)
    with reaching_store(path):
        if filesystem.exists(name):
            filesystem.rm_file(name)


def move_file(source: str, target: str) -> None:
    """Puts a file in another's place; does nothing if it is gone, having been moved before."""
    if not exists(source):
        return
    run_checks()
    if is_local(source) and is_local(target):
        Path(local_path(source)).replace(local_path(target))
        return
    filesystem, name = file_system(source)
    with reaching_store(target):
        filesystem.mv(name, file_system(target)[1])


def remove_folder(folder: str) -> None:
    """Removes a folder with all that is in it, if there is one."""
    run_checks()
    filesystem, name = file_system(folder)
    with reaching_store(folder):
        if filesystem.exists(name):
            filesystem.rm(name, recursive=True)


def list_files(folder: str, suffix: str = "") -> list[str]:
    """Returns the paths of the visible files straight below `folder`, sorted; [] if none."""
    if is_local(folder):
        return local_files(local_path(folder), folder.rstrip("/"), suffix)
    return [path for path in sorted(file_sizes(folder)) if path.endswith(suffix)]


def file_sizes(folder: str) -> dict[str, int]:
    """Returns path to size, in bytes, of the visible files straight below `folder`."""
    if is_local(folder):
        return local_sizes(local_path(folder), folder.rstrip("/"))
    filesystem, name = file_system(folder)
    with reaching_store(folder):
        if not filesystem.exists(name):
            return {}
        entries = filesystem.ls(name, detail=True)
    # A store may hold an object by the name of the folder itself, of no bytes.
    entries = [entry for entry in entries if entry["name"].strip("/") != name.strip("/")]
    sizes = {
        entry["name"].rstrip("/").rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in entries
    }
    stem = folder.rstrip("/")
    return {f"{stem}/{file}": size for file, size in sizes.items() if not file.startswith(".")}


def walk_files(folder: str) -> list[str]:
    """Returns the paths of all visible files below a folder, at any depth, sorted; [] if none."""
    filesystem, name = file_system(folder)
    prefix = name.rstrip("/") + "/"
    with reaching_store(folder):
        entries = filesystem.find(name)
    found = [entry for entry in entries if "/." not in entry[len(prefix) - 1 :]]
    return sorted(f"{folder.rstrip('/')}/{entry[len(prefix) :]}" for entry in found)


def lies_within(path: str, folder: str) -> bool:
    """Returns whether a file or folder is, or lies in, a folder that is there, however spelt.

    Local paths are followed through links; of a chained URL the store at its end counts.
    """
    path = path.rsplit("::", 1)[-1] if "://" in path else path
    if is_local(path) != is_local(folder):
        return False
    if is_local(path):
        root, place = Path(local_path(folder)), Path(local_path(path)).resolve()
        there = [one for one in (place, *place.parents) if one.exists()]
        return root.exists() and any(one.samefile(root) for one in there)
    (store, name), (other, base) = file_system(path), file_system(folder)
    # Some stores give names from a root ("/data"), and some take "..".
    name, base = (posixpath.normpath("/" + place.strip("/")) for place in (name, base))
    return type(store) is type(other) and f"{name}/".startswith(base.rstrip("/") + "/")


def stage_files(folder: str) -> list[str]:
    """Returns the paths in a stage's folder that are named as stages name theirs, sorted."""
    return [path for path in list_files(folder) if is_stage_file(path)]


def committed_fingerprint(path: str) -> str | None:
    """Returns the fingerprint stored in a committed Parquet or JSON file; None if none stands."""
    # One request of a store less than asking first whether the file is there.
    try:
        if not path.endswith(".parquet"):
            return read_json(path).get("fingerprint")
        with open_read(path) as file:
            return file_metadata(pq.read_schema(file)).get("fingerprint")
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_local(path: str) -> bool:
    """Returns whether `path` is on this machine's file system."""
    return "://" not in path or path.startswith(("file://", "local://"))


def local_path(path: str) -> str:
    """Returns a local path without its protocol; `~` is the user's home, as fsspec has it."""
    plain = path.split("://", 1)[1] if "://" in path else path
    return str(Path(plain).expanduser()) if plain.startswith("~") else plain


def absolute_path(path: str) -> str:
    """Returns a path that is good in every process, links not followed; a store's URL as it is."""
    if not is_local(path):
        return path
    return os.path.abspath(local_path(path))  # noqa: PTH100 (resolve() would follow links)
