import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.dataset.train_samples import read_images, read_rows
from pipeline.dataset.train_shards import HashingFile, write_index, write_train_shard
from schemas.columns import file_metadata
from schemas.records import STORED_COLUMNS, StoredSample
from schemas.shards import DatasetLayout
from tests.curations import record_of
from tests.datasets import fetched_sample, jpeg


def stored(number):
    values = asdict(fetched_sample(number))
    return StoredSample(**{name: values[name] for name in STORED_COLUMNS})


def test_a_shard_is_tar_and_table_of_the_same_samples(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    said: list[int] = []
    samples = [(stored(number), (number / 10, 1 + number), (jpeg(number),)) for number in range(3)]
    count, length = write_train_shard(layout, 0, samples, "f", said.append)
    assert (count, said) == (3, [1, 2, 3])
    data = Path(layout.train(0, "tar")).read_bytes()
    metadata = file_metadata(pq.read_schema(layout.train(0, "parquet")))
    assert metadata["tar_sha256"] == hashlib.sha256(data).hexdigest()
    assert int(metadata["tar_bytes"]) == length == len(data)
    [table] = read_rows(layout, 0)
    assert table["alignment_level"].to_pylist() == [1, 2, 3]
    for number, row in enumerate(table.to_pylist()):
        assert read_images(io.BytesIO(data), "tar", row) == (jpeg(number),)


def test_the_index_lists_the_shards_in_order_and_those_of_before_are_gone(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    Path(layout.train(0, "tar")).parent.mkdir()
    for number in range(3):
        Path(layout.train(number, "tar")).write_bytes(b"")
    record_of(layout).write()
    stranger = Path(layout.train(7, "tar"))
    stranger.write_bytes(b"a user's")
    assert write_index(layout, [(1, 5, 20), (0, 8, 30)]) == [0, 1]
    index = json.loads(Path(layout.train_index).read_text())
    assert index["shardlist"] == [
        {"url": "000000.tar", "nsamples": 8, "filesize": 30},
        {"url": "000001.tar", "nsamples": 5, "filesize": 20},
    ]
    assert not Path(layout.train(2, "tar")).exists()
    assert stranger.exists()


def test_a_hash_is_that_of_all_that_was_written():
    file = HashingFile(io.BytesIO())
    assert [file.write(b"abc"), file.write(b""), file.write(b"d")] == [3, 0, 1]
    assert (file.tell(), file.sha256) == (4, hashlib.sha256(b"abcd").hexdigest())
