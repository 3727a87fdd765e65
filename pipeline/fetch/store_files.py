"""Images that lie in folders of an object store, read from nowhere else."""

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
        if folder is None or ".." in name.split("/"):
            raise SampleRejected(RejectReason.FORBIDDEN_ADDRESS, "outside of fetch.allow_folders")
        # Of the folder alone: a name with `::` or another scheme in it would lead elsewhere.
        filesystem, base = file_system(folder)
        path = f"{base.rstrip('/')}/{name}"
        try:
            with reaching_store(folder):
                data = cast(bytes, filesystem.cat_file(path, start=0, end=self._max_bytes + 1))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise SampleRejected(RejectReason.FILE_NOT_FOUND, "no such file") from error
        if len(data) > self._max_bytes:
            raise SampleRejected(RejectReason.TOO_MANY_BYTES, f"more than {self._max_bytes} bytes")
        return data


def is_store(folder: str) -> bool:
    """Returns whether a folder lies in an object store, or in another of fsspec's filesystems."""
    scheme, separator, _ = folder.partition("://")
    return bool(separator) and scheme.lower() not in ASKED_SCHEMES
