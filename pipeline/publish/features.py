"""What the columns of a published dataset are: Arrow types, and the same in the Hub's words.

Source: the features of `datasets` as its cards (YAML) and its Parquet files (JSON) hold them.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.errors import ConfigError
from schemas.records import STORED_COLUMNS, TRAIN_SCHEMA

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""An encoded image as `datasets` stores one."""

PLACES = ("image_offset", "image_bytes", "more_image_offsets", "more_image_bytes")
"""Columns of the train tables that say where images lie in our own tars."""

TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))

LISTS = {
    "captions": pa.list_(pa.string()),
    "more_urls": pa.list_(pa.string()),
    "conversations": TURNS,
}
"""Columns that are JSON in our tables and lists in published ones."""

JSON_TEXTS = ("conversations", "more_urls", "more_images")
"""Fields of the `.json` members that are JSON in a text, since they may be empty lists."""


PICTURE_COLUMNS = ("image", "other_images")
"""Of a published table: what holds the pictures."""


def refuse_own_pictures(kept: Sequence[pa.Field]) -> None:
    """Raises `ConfigError` if the input's own columns stand where a table's pictures go."""
    taken = [field.name for field in kept if field.name in PICTURE_COLUMNS]
    if taken:
        raise ConfigError(
            f"--form parquet puts the pictures into {' and '.join(PICTURE_COLUMNS)}, but "
            f"the dataset took a column {taken[0]!r} of its input along: publish it with --form "
            f"webdataset, or curate with --read.keep-columns {taken[0]}=told_{taken[0]}"
        )


def parquet_schema(kept: Sequence[pa.Field]) -> pa.Schema:
    """Returns the columns of a published table: images within, lists as lists.

    Args:
        kept: columns of the input's own.
    """
    known = [
        pa.field(field.name, LISTS.get(field.name, field.type), metadata=field.metadata)
        for field in TRAIN_SCHEMA
        if field.name not in PLACES
    ]
    about = {
        "image": (IMAGE, "the (first) image, encoded; null for text alone"),
        "other_images": (pa.list_(IMAGE), "the images after the first, encoded; null for one"),
    }
    images = [
        pa.field(name, kind, metadata={"description": text}) for name, (kind, text) in about.items()
    ]
    schema = pa.schema([*images, *known, *kept])
    features = {field.name: json_feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def tar_features(image_fields: list[str], kept: Sequence[pa.Field]) -> list[dict[str, Any]]:
    """Returns the fields of a published tar's samples, as a card lists them.

    Args:
        image_fields: endings of the image members that there are, such as jpg and 1.jpg.
        kept: columns of the input's own.
    """
    text = {"dtype": "string"}
    known = [
        {"name": field.name, **yaml_feature(_json_type(field))}
        for field in [*map(TRAIN_SCHEMA.field, (*STORED_COLUMNS, *LEVELS)), *kept]
    ]
    return [
        *({"name": name, "dtype": "image"} for name in image_fields),
        {"name": "txt", **text},
        {"name": "json", "struct": sorted(known, key=lambda feature: str(feature["name"]))},
        {"name": "__key__", **text},
        {"name": "__url__", **text},
    ]


LEVELS = ("clip_score", "alignment_level")


def _json_type(field: pa.Field) -> pa.DataType:
    if field.name in JSON_TEXTS or pa.types.is_temporal(field.type):
        return pa.string()
    return LISTS.get(field.name, field.type)


def parquet_features(kept: Sequence[pa.Field]) -> list[dict[str, Any]]:
    """Returns the columns of a published table, as a card lists them."""
    return [{"name": field.name, **yaml_feature(field.type)} for field in parquet_schema(kept)]


def yaml_feature(kind: pa.DataType) -> dict[str, Any]:
    """Returns a type as the YAML of a card says it, without a name."""
    if kind == IMAGE:
        return {"dtype": "image"}
    if pa.types.is_list(kind):
        inner = yaml_feature(kind.value_type)
        return {"list": inner.get("struct") or inner.get("dtype") or inner}
    if pa.types.is_struct(kind):
        return {"struct": [{"name": part.name, **yaml_feature(part.type)} for part in kind]}
    return {"dtype": _dtype(kind)}


def json_feature(kind: pa.DataType) -> dict[str, Any]:
    """Returns a type as the metadata of a Parquet file says it."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": json_feature(kind.value_type)}
    if pa.types.is_struct(kind):
        return {part.name: json_feature(part.type) for part in kind}
    return {"_type": "Value", "dtype": _dtype(kind)}


def _dtype(kind: pa.DataType) -> str:
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    return {**names, "date32[day]": "date32"}.get(str(kind), str(kind))
