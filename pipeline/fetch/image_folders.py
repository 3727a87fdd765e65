"""Images that lie in folders, local ones or a store's, read from nowhere else."""

import itertools
import os
import stat
from pathlib import Path
from typing import cast

from schemas.errors import RejectReason, SampleRejected
from schemas.storage import file_system, reaching_store

ASKED_SCHEMES = ("http", "https", "file")
"""Schemes of folders that are no stores: their images are asked of a server, or are local."""


class StoreFiles:
    """Reads files below the folders of stores, as fsspec URLs, that the configuration allows."""

    def __init__(self, folders: tuple[str, ...], max_bytes: int) -> None:
        self._folders = tuple(folder.rstrip("/") + "/" for folder in folders if is_store(folder))
        self._max_bytes = max_bytes

    def holds(self, url: str) -> bool:
        """Returns whether a URL leads to a file below one of the folders."""
        return url.startswith(self._folders)

    def read(self, url: str) -> bytes:
        """Returns a file's bytes.

        Raises:
            SampleRejected: if it is not there, not below one of the folders, or too large.
            StorageError: if the store is out of reach.
        """
        folder = next((folder for folder in self._folders if url.startswith(folder)), None)
        name = url[len(folder) :] if folder is not None else ".."
        if folder is None or ".." in _as_posix(name).split("/"):
            raise SampleRejected(RejectReason.FORBIDDEN_ADDRESS, "outside of fetch.allow_folders")
        # Of the folder alone: a name with `::` or another scheme in it would lead elsewhere.
        filesystem, base = file_system(folder)
        path = f"{base.rstrip('/')}/{name}"
        try:
            with reaching_store(folder):
                if "\\" in name and not filesystem.exists(path):
                    path = f"{base.rstrip('/')}/{_as_posix(name)}"
                data = cast(bytes, filesystem.cat_file(path, start=0, end=self._max_bytes + 1))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise SampleRejected(RejectReason.FILE_NOT_FOUND, "no such file") from error
        if len(data) > self._max_bytes:
            raise SampleRejected(RejectReason.TOO_MANY_BYTES, f"more than {self._max_bytes} bytes")
        return data


class LocalFiles:
    """Reads files below the folders that the configuration allows."""

    def __init__(self, folders: tuple[str, ...], max_bytes: int) -> None:
        local = (folder.removeprefix("file://") for folder in folders if not is_store(folder))
        self._folders = tuple(Path(folder).resolve() for folder in local)
        self._max_bytes = max_bytes

    def read(self, url: str) -> bytearray:
        """Returns a file's bytes. A relative path starts from each of the folders in turn.

        Raises:
            SampleRejected: if it is not there, not allowed or too large.
        """
        if not self._folders:
            detail = "paths are read only below fetch.allow_folders"
            raise SampleRejected(RejectReason.FORBIDDEN_SCHEME, detail)
        path = self._find(url[len("file://") :] if url.lower().startswith("file://") else url)
        try:
            # Resolved already; O_NOFOLLOW and O_NONBLOCK guard against what is put there since.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            detail = os.strerror(error.errno or 0) if isinstance(error, OSError) else "bad path"
            raise SampleRejected(RejectReason.FILE_NOT_FOUND, detail) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SampleRejected(RejectReason.FILE_NOT_FOUND, "not a regular file")
        with os.fdopen(descriptor, "rb") as file:
            data = bytearray(file.read(self._max_bytes + 1))
        if len(data) > self._max_bytes:
            raise SampleRejected(RejectReason.TOO_MANY_BYTES, f"more than {self._max_bytes} bytes")
        return data

    def _find(self, text: str) -> Path:
        """Returns the real path of a file below one of the folders.

        A path with backslashes that leads nowhere is taken as Windows spells it.
        """
        is_inside = False
        for folder, name in itertools.product(self._folders, (text, _as_posix(text))):
            try:
                path = (folder / name).resolve()
                if path.is_relative_to(folder):
                    is_inside = True
                    if path.exists():
                        return path
            except (OSError, ValueError, RuntimeError):
                continue
        if is_inside:
            raise SampleRejected(RejectReason.FILE_NOT_FOUND, "no such file")
        raise SampleRejected(RejectReason.FORBIDDEN_ADDRESS, "outside of fetch.allow_folders")


def _as_posix(path: str) -> str:
    return path.replace("\\", "/")


def is_store(folder: str) -> bool:
    """Returns whether a folder lies in an object store, or in another of fsspec's filesystems."""
    scheme, separator, _ = folder.partition("://")
    return bool(separator) and scheme.lower() not in ASKED_SCHEMES
