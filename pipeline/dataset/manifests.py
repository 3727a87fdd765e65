"""The manifest of a finished dataset, as it lies in its folder."""

import hashlib

from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.storage import exists, is_folder, is_local, read_bytes


def refuse_no_folder(root: str) -> None:
    """Raises `ConfigError` unless a folder is where a dataset is said to be."""
    if not exists(root):
        raise ConfigError(f"there is no folder {root}")
    if is_local(root) and not is_folder(root):
        raise ConfigError(f"{root} is a file: give the folder of a dataset")


def read_manifest(layout: DatasetLayout) -> Manifest:
    """Returns the manifest of a dataset.

    Raises:
        ConfigError: if there is no such folder.
        DatasetError: if it holds no manifest, or one of another schema version.
    """
    refuse_no_folder(layout.root)
    if not exists(layout.manifest):
        raise DatasetError(f"{layout.root} has no manifest.json: run `report` or `curate` first")
    return Manifest.from_json(read_bytes(layout.manifest).decode())


def manifest_sha256(layout: DatasetLayout) -> str:
    """Returns the hash of a dataset's manifest, which knows the hashes of all of its shards."""
    return hashlib.sha256(read_bytes(layout.manifest)).hexdigest()
