import hashlib
import json
import tarfile
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import webdataset
import wids

from pipeline.config import PackConfig
from pipeline.pack.transform import PackShards
from schemas.columns import file_metadata, read_table
from schemas.records import LEVELLED_SCHEMA, TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from tests.curations import record_of
from tests.datasets import jpeg, write_dataset
from tests.pipelines import shard_numbers


def pack(root: Path, samples_per_shard: int, has_levels: bool = True, shards=(0, 1)) -> list[int]:
    """Returns the numbers of the train shards that a packing gives."""
    layout, config = DatasetLayout(str(root)), PackConfig(samples_per_shard=samples_per_shard)
    return shard_numbers(
        root,
        lambda pipeline: (
            pipeline
            | beam.Create(list(shards), reshuffle=False)
            | PackShards(layout, config, has_levels)
        ),
    )


def train_rows(root: Path) -> list[dict]:
    paths = sorted((root / "train").glob("*.parquet"))
    return [row for path in paths for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()]


def test_every_train_shard_but_the_last_holds_exactly_the_wanted_number_of_samples(tmp_path):
    total = write_dataset(tmp_path)
    assert pack(tmp_path, 15) == [0, 1, 2]
    tables = [
        read_table(str(path), TRAIN_SCHEMA)
        for path in sorted((tmp_path / "train").glob("*.parquet"))
    ]
    assert [table.num_rows for table in tables] == [15, 15, total - 30]


def test_every_levelled_sample_is_packed_once_with_its_score_and_level(tmp_path):
    write_dataset(tmp_path)
    pack(tmp_path, 7)
    layout = DatasetLayout(str(tmp_path))
    levelled = [
        row
        for shard in (0, 1)
        for row in read_table(layout.levelled(shard), LEVELLED_SCHEMA).to_pylist()
    ]
    packed = [{name: row[name] for name in LEVELLED_SCHEMA.names} for row in train_rows(tmp_path)]
    assert packed == levelled


def test_an_image_lies_in_the_tar_where_its_row_says(tmp_path):
    write_dataset(tmp_path, is_scored=False)
    pack(tmp_path, 100, has_levels=False)
    tar = (tmp_path / "train" / "000000.tar").read_bytes()
    rows = train_rows(tmp_path)
    for row in rows:
        if row["url"] is None:
            assert row["image_offset"] is None
            assert row["image_bytes"] is None
        else:
            image = tar[row["image_offset"] : row["image_offset"] + row["image_bytes"]]
            assert image == jpeg(int(row["key"][:8], 16))
    assert {row["url"] is None for row in rows} == {True, False}
    assert {row["alignment_level"] for row in rows} == {None}


def test_members_stand_in_the_order_of_the_rows_and_hold_text_and_metadata(tmp_path):
    write_dataset(tmp_path, is_scored=False)
    pack(tmp_path, 100, has_levels=False)
    rows = train_rows(tmp_path)
    with tarfile.open(tmp_path / "train" / "000000.tar") as tar:
        names = tar.getnames()
        expected = [
            f"{row['key']}.{ending}"
            for row in rows
            for ending in (("jpg", "txt", "json") if row["url"] else ("txt", "json"))
        ]
        assert names == expected
        assert {member.mtime for member in tar.getmembers()} == {0}
        text_row = next(row for row in rows if row["url"] is None)
        values = json.load(tar.extractfile(f"{text_row['key']}.json"))
        assert values["conversations"] == text_row["conversations"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:String specifications:UserWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of webdataset and wids
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_wids_read_the_shards(tmp_path):
    total = write_dataset(tmp_path)
    pack(tmp_path, 15)
    keys = [row["key"] for row in train_rows(tmp_path)]

    urls = [str(path) for path in sorted((tmp_path / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb"))
    assert [sample["__key__"] for sample in samples] == keys
    assert samples[0]["jpg"].shape == (16, 24, 3)

    dataset = wids.ShardListDataset(
        str(tmp_path / "train" / "index.json"), cache_dir=str(tmp_path / "cache")
    )
    assert len(dataset) == total
    assert dataset[17]["__key__"].endswith(keys[17])
    assert dataset[17][".txt"].startswith("picture number")
    assert np.asarray(dataset[17][".jpg"]).shape == (16, 24, 3)


def test_the_hash_beside_a_tar_is_that_of_its_bytes(tmp_path):
    write_dataset(tmp_path)
    pack(tmp_path, 15)
    for path in (tmp_path / "train").glob("*.parquet"):
        stored = file_metadata(read_table(str(path), TRAIN_SCHEMA).schema)
        tar = path.with_suffix(".tar").read_bytes()
        assert stored["tar_sha256"] == hashlib.sha256(tar).hexdigest()
        assert int(stored["tar_bytes"]) == len(tar)


@pytest.mark.slow
def test_packing_twice_writes_once_and_packing_anew_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_dataset(tmp_path / name)
        pack(tmp_path / name, 15)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "one" / "train").glob("*.tar")}
    pack(tmp_path / "one", 15)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    for path in (tmp_path / "one" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "train" / path.name).read_bytes()


@pytest.mark.slow
def test_larger_shards_leave_none_of_the_smaller_ones_behind(tmp_path):
    write_dataset(tmp_path)
    assert pack(tmp_path, 5) == list(range(8))
    record_of(DatasetLayout(str(tmp_path))).write()
    foreign = tmp_path / "train" / "000007.jpg"
    foreign.write_bytes(b"mine")
    assert pack(tmp_path, 20) == [0, 1]
    foreign.unlink()
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == ["000000.parquet", "000000.tar", "000001.parquet", "000001.tar", "index.json"]
