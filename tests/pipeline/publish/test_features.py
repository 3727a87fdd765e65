"""Types of published columns in the words of the Hub."""

import json

import pyarrow as pa
import pytest

from pipeline.publish.features import (
    IMAGE,
    TURNS,
    json_feature,
    parquet_features,
    parquet_schema,
    refuse_own_pictures,
    tar_features,
    yaml_feature,
)
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("kind", "in_card", "in_file"),
    [
        (pa.string(), {"dtype": "string"}, {"_type": "Value", "dtype": "string"}),
        (pa.float32(), {"dtype": "float32"}, {"_type": "Value", "dtype": "float32"}),
        (pa.float16(), {"dtype": "float16"}, {"_type": "Value", "dtype": "float16"}),
        (pa.date32(), {"dtype": "date32"}, {"_type": "Value", "dtype": "date32"}),
        (IMAGE, {"dtype": "image"}, {"_type": "Image"}),
        (
            pa.list_(IMAGE),
            {"list": "image"},
            {"_type": "List", "feature": {"_type": "Image"}},
        ),
        (
            pa.list_(pa.list_(pa.int8())),
            {"list": {"list": "int8"}},
            {
                "_type": "List",
                "feature": {"_type": "List", "feature": {"_type": "Value", "dtype": "int8"}},
            },
        ),
        (
            TURNS,
            {"list": [{"name": n, "dtype": "string"} for n in ("from", "value")]},
            {
                "_type": "List",
                "feature": {n: {"_type": "Value", "dtype": "string"} for n in ("from", "value")},
            },
        ),
    ],
    ids=str,
)
def test_a_type_has_its_name_at_the_hub(kind, in_card, in_file):
    assert yaml_feature(kind) == in_card
    assert json_feature(kind) == in_file


def test_a_published_table_holds_images_and_not_where_they_lay():
    schema = parquet_schema([pa.field("uid", pa.int64())])
    assert schema.names[:2] == ["image", "other_images"] and schema.names[-1] == "uid"
    assert not {"image_offset", "image_bytes"} & set(schema.names)
    assert schema.field("captions").type == pa.list_(pa.string())
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert [feature["name"] for feature in parquet_features([])] == parquet_schema([]).names


def test_a_published_tar_has_an_image_field_for_each_ending():
    kept = [pa.field("seen", pa.timestamp("s")), pa.field("uid", pa.int64())]
    features = {feature["name"]: feature for feature in tar_features(["jpg", "1.jpg"], kept)}
    assert list(features) == ["jpg", "1.jpg", "txt", "json", "__key__", "__url__"]
    fields = {field["name"]: field for field in features["json"]["struct"]}
    assert list(fields) == sorted(fields)
    assert fields["seen"] == {"name": "seen", "dtype": "string"}  # JSON has no times
    assert fields["uid"]["dtype"] == "int64"
    assert fields["conversations"]["dtype"] == "string"


@pytest.mark.parametrize("name", ["image", "other_images"])
def test_a_column_of_the_input_in_the_place_of_the_pictures_is_refused(name):
    fields = [pa.field("images", pa.string()), pa.field(name, pa.string())]
    refuse_own_pictures(fields[:1])
    with pytest.raises(ConfigError, match=rf"--read\.keep-columns {name}=told_{name}"):
        refuse_own_pictures(fields)
