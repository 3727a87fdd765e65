"""What lies beside the shards of a publication."""

import json
import subprocess

import numpy as np
import pyarrow as pa
import pytest
import yaml

from pipeline.publish.card import About
from pipeline.publish.companions import checksums, croissant, energon_files, wids_index
from pipeline.publish.run import check_croissant
from pipeline.publish.shards import Published
from schemas.errors import DatasetError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlcroissant


def test_what_energon_reads_says_where_each_sample_begins(tars, expected):
    info = json.loads((tars / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert info == yaml.safe_load((tars / ".nv-meta" / ".info.yaml").read_text())["shard_counts"]
    parts = yaml.safe_load((tars / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    for part, split in (("train", "train"), ("val", "validation")):
        keys = []
        for name in parts[part]:
            data = (tars / name).read_bytes()
            starts = np.frombuffer((tars / f"{name}.idx").read_bytes(), "<u8").tolist()
            assert len(starts) == info[name] + 1
            keys += [data[start : start + 32].decode() for start in starts[:-1]]
            assert not data[starts[-1] : starts[-1] + 1024].strip(b"\0")
        assert set(keys) == set(expected[split])


def test_croissant_is_valid_and_what_is_not_is_refused(tars, tables, dataset):
    for folder in (tars, tables, dataset):
        check_croissant(json.loads((folder / "croissant.json").read_text()))
    values = json.loads((tars / "croissant.json").read_text())
    values["distribution"][0].pop("sha256")
    with pytest.raises(DatasetError, match="not valid"):
        check_croissant(values)


def test_every_file_has_its_hash(tars, tables):
    for folder in (tars, tables):
        check = subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "checksums.sha256"],
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert (check.returncode, check.stdout) == (0, b"")
        listed = {
            line.split("  ")[1]
            for line in (folder / "checksums.sha256").read_text().split("\n")
            if line
        }
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files - listed == {"checksums.sha256", ".aligngpt/publish.json"}


SHARDS = [
    Published(name="train/a.tar", samples=3, num_bytes=10, sha256="0" * 64),
    Published(name="validation/b.tar", samples=1, num_bytes=7, sha256="1" * 64),
]


def test_shards_are_listed_for_who_reads_them():
    index = json.loads(wids_index(SHARDS[:1]))
    assert index["shardlist"] == [{"url": "a.tar", "nsamples": 3, "filesize": 10}]
    files = energon_files(SHARDS)
    parts = yaml.safe_load(files[".nv-meta/split.yaml"])["split_parts"]
    assert parts == {"train": ["train/a.tar"], "val": ["validation/b.tar"], "test": []}
    counts = {"train/a.tar": 3, "validation/b.tar": 1}
    assert yaml.safe_load(files[".nv-meta/.info.yaml"]) == {"shard_counts": counts}
    assert checksums(SHARDS).splitlines()[1] == f"{'1' * 64}  validation/b.tar"


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_catalogues_are_told_of_every_shard_and_column(form):
    about = About(name="x", form=form, licence="mit", language=("en",))
    values = json.loads(croissant(about, SHARDS, ["jpg", "png"], [pa.field("uid", pa.int64())]))
    files = {one["@id"]: one for one in values["distribution"]}
    assert files["train/a.tar"]["sha256"] == "0" * 64
    assert files["validation/b.tar"]["contentSize"] == "7 B"
    assert "4 image-text samples" in values["description"]
    if form == "parquet":
        (record,) = values["recordSet"]
        names = [field["name"] for field in record["field"]]
        assert names[0] == "image" and {"uid", "caption", "clip_score"} <= set(names)
    else:
        assert {"texts", "images_jpg", "images_png"} <= set(files)
