"""Which picture it is that a damaged shard holds otherwise than it was fetched."""

import shutil

import pyarrow.parquet as pq

from pipeline.report.verify_origin import unlike_fetched
from schemas.shards import DatasetLayout
from tests.corruptions import cut, flip_in_picture


def found(root):
    rows = pq.read_table(root / "train" / "000001.parquet")
    return list(unlike_fetched(DatasetLayout(str(root)), "000001", rows)), rows["key"].to_pylist()


def test_the_one_picture_that_differs_is_named(whole, tmp_path):
    assert found(whole)[0] == []
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    flip_in_picture(root)
    told, keys = found(root)
    fault = f"{keys[3]}.jpg is not the picture that was fetched"
    assert told == [(f"train/000001 row 3 ({keys[3]})", fault)]


def test_a_fetched_shard_that_cannot_tell_is_named_in_its_place(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    cut(root / "fetched" / "00001.tar", 0.2)
    told, _ = found(root)
    assert [where for where, _ in told] == ["fetched/00001.tar"]
