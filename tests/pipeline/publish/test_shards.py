"""Tars and tables of a publication, written from rows."""

import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.train_samples import TarReaders
from pipeline.publish.samples import Publishable
from pipeline.publish.shards import ROWS_OF_GROUP, parquet_row, write_parquet, write_tar
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout


@pytest.fixture(scope="module")
def samples(dataset):
    """Returns three rows with their images: of one, of three, of none."""
    manifest = Manifest.from_json((dataset / "manifest.json").read_text())
    publishable = Publishable(DatasetLayout(str(dataset)), manifest, 0.0)
    readers = TarReaders()
    try:
        found = list(publishable.samples("train", [False], 1000, readers))
    finally:
        readers.close()
    by_number = {len(images): (row, images) for row, images in found}
    assert set(by_number) == {0, 1, 3}
    return [by_number[number] for number in (1, 3, 0)]


def test_a_tar_and_its_index_hold_each_sample_at_its_place(samples, tmp_path):
    done = []
    path = str(tmp_path / "a.tar")
    tar, index = write_tar(path, "train/a.tar", samples, lambda: done.append(1), [])
    assert (len(done), tar.samples, index.samples) == (3, 3, 0)
    data = (tmp_path / "a.tar").read_bytes()
    assert (tar.num_bytes, index.name) == (len(data), "train/a.tar.idx")
    starts = np.frombuffer((tmp_path / "a.tar.idx").read_bytes(), "<u8").tolist()
    for (row, images), start, stop in zip(samples, starts, starts[1:], strict=False):
        piece = data[start:stop] + bytes(1024)
        with tarfile.open(fileobj=io.BytesIO(piece)) as members:
            found = {member.name: members.extractfile(member).read() for member in members}
        key = row["key"]
        endings = ["jpg", "1.jpg", "2.jpg"][: len(images)]
        assert list(found) == [f"{key}.{ending}" for ending in (*endings, "txt", "json")]
        assert [found[f"{key}.{ending}"] for ending in endings] == list(images)
        assert found[f"{key}.txt"].decode() == row["caption"]
        assert json.loads(found[f"{key}.json"])["key"] == key


def test_a_table_holds_its_images_in_small_row_groups(samples, tmp_path):
    path = tmp_path / "a.parquet"
    count = ROWS_OF_GROUP + 1
    rows = [samples[number % 3] for number in range(count)]
    (table,) = write_parquet(str(path), "train/a.parquet", rows, lambda: None, [])
    assert (table.samples, table.num_bytes) == (count, path.stat().st_size)
    metadata = pq.read_metadata(path)
    groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert groups == [ROWS_OF_GROUP, 1]
    first = pq.read_table(path).slice(0, 1).to_pylist()[0]
    assert first["image"]["bytes"] == samples[0][1][0]


def test_a_row_has_lists_in_place_of_their_json():
    row = {"key": "k", "image_format": "png", "caption": "a", "captions": None}
    row |= {"more_urls": '["b"]', "conversations": ""}
    found = parquet_row(row, (b"1", b"2"))
    assert found["captions"] == ["a"]
    assert (found["more_urls"], found["conversations"]) == (["b"], None)
    assert found["image"] == {"bytes": b"1", "path": "k.png"}
    assert found["other_images"] == [{"bytes": b"2", "path": "k.1.png"}]
    alone = parquet_row({**row, "captions": '["a", "b"]'}, ())
    assert (alone["captions"], alone["image"], alone["other_images"]) == (["a", "b"], None, None)
