import json

import pyarrow as pa
import pytest

from pipeline.dataset.croissant import croissant_field, croissant_metadata
from schemas.records import TRAIN_SCHEMA
from tests.datasets import finish, write_dataset


def test_every_column_and_file_is_described(tmp_path):
    write_dataset(tmp_path, shards=1, samples=4)
    manifest = finish(tmp_path)
    kept = [pa.field("license", pa.string())]
    values = json.loads(croissant_metadata(manifest, kept))
    names = [field["name"] for field in values["recordSet"][0]["field"]]
    assert names == [*TRAIN_SCHEMA.names, "license"]
    files = {file["@id"]: file for file in values["distribution"]}
    [shard] = manifest.shards
    assert files[f"train/{shard.name}.tar"]["sha256"] == shard.tar_sha256
    assert files[f"train/{shard.name}.parquet"]["contentSize"] == f"{shard.parquet_bytes} B"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), "sc:Integer"),
        (pa.float32(), "sc:Float"),
        (pa.bool_(), "sc:Boolean"),
        (pa.date32(), "sc:Date"),
        (pa.timestamp("us"), "sc:DateTime"),
        (pa.string(), "sc:Text"),
    ],
)
def test_a_column_has_the_catalogues_word_for_its_type(kind, expected):
    found = croissant_field(pa.field("x", kind), "tables")
    assert found["dataType"] == expected and "repeated" not in found
    several = croissant_field(pa.field("x", pa.list_(kind)), "tables")
    assert several["dataType"] == expected and several["repeated"] is True


def test_the_parts_of_a_struct_are_fields_of_their_own():
    found = croissant_field(pa.field("box", pa.struct([("x", pa.int32())])), "tables")
    [part] = found["subField"]
    assert part["dataType"] == "sc:Integer"
    assert part["source"]["transform"] == {"jsonPath": "x"}
