import hashlib
from pathlib import Path

import pytest

from pipeline.dataset.manifests import manifest_sha256, read_manifest
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from tests.datasets import finish, write_dataset


def test_a_finished_dataset_has_a_manifest_and_its_hash(tmp_path):
    write_dataset(tmp_path, shards=1, samples=4)
    manifest = finish(tmp_path)
    layout = DatasetLayout(str(tmp_path))
    assert read_manifest(layout) == manifest
    data = Path(layout.manifest).read_bytes()
    assert manifest_sha256(layout) == hashlib.sha256(data).hexdigest()


def test_no_folder_a_file_and_no_manifest_are_three_faults(tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        read_manifest(DatasetLayout(str(tmp_path / "none")))
    (tmp_path / "pairs.tsv").touch()
    with pytest.raises(ConfigError, match=r"pairs\.tsv is a file: give the folder of a dataset"):
        read_manifest(DatasetLayout(str(tmp_path / "pairs.tsv")))
    with pytest.raises(DatasetError, match=r"has no manifest\.json: run `report`"):
        read_manifest(DatasetLayout(str(tmp_path)))
