"""The manifest of a finished dataset, as it lies in its folder."""

import hashlib

from schemas.errors import DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.storage import exists, read_bytes


def read_manifest(layout: DatasetLayout) -> Manifest:
    """Returns the manifest of a dataset.

    Raises:
        DatasetError: if there is none, or of another schema version.
    """
    if not exists(layout.root):
        raise DatasetError(f"there is no folder {layout.root}")
    if not exists(layout.manifest):
        raise DatasetError(f"{layout.root} has no manifest.json: run `report` or `curate` first")
    return Manifest.from_json(read_bytes(layout.manifest).decode())


def manifest_sha256(layout: DatasetLayout) -> str:
    """Returns the hash of a dataset's manifest, which knows the hashes of all of its shards."""
    return hashlib.sha256(read_bytes(layout.manifest)).hexdigest()
