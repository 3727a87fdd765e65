"""Croissant metadata of the train shards: what dataset catalogues and loaders read.

Source: the Croissant format specification, version 1.0, of MLCommons.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from schemas.manifest import Manifest
from schemas.records import TRAIN_SCHEMA

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

NAME = "aligngpt-train"


def croissant_metadata(manifest: Manifest, kept: Sequence[pa.Field] = ()) -> str:
    """Returns the description of a dataset's train shards as JSON-LD.

    Args:
        kept: the input's own columns.
    """
    levels = f", in {manifest.num_levels} alignment levels" if manifest.num_levels else ""
    values = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": NAME,
        "description": f"{manifest.kept} image-text samples curated by aligngpt{levels}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": f"{manifest.schema_version}.0.0",
        "distribution": [
            *(file for shard in manifest.shards for file in _shard_files(shard)),
            file_set("tables", "application/x-parquet", "train/*.parquet"),
            file_set("images", "application/x-tar", "train/*.tar"),
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "description": "One row for each sample; its image lies in the tar of its shard.",
                "key": {"@id": "samples/key"},
                "field": [croissant_field(field, "tables") for field in (*TRAIN_SCHEMA, *kept)],
            }
        ],
    }
    return json.dumps(values, indent=2) + "\n"


def _shard_files(shard: Any) -> list[dict[str, Any]]:
    kinds = (
        ("parquet", "application/x-parquet", shard.parquet_bytes, shard.parquet_sha256),
        ("tar", "application/x-tar", shard.tar_bytes, shard.tar_sha256),
    )
    return [
        {
            "@type": "cr:FileObject",
            "@id": f"train/{shard.name}.{extension}",
            "name": f"{shard.name}.{extension}",
            "contentUrl": f"train/{shard.name}.{extension}",
            "contentSize": f"{size} B",
            "encodingFormat": encoding,
            "sha256": digest,
        }
        for extension, encoding, size, digest in kinds
    ]


def file_set(name: str, encoding: str, includes: str) -> dict[str, Any]:
    """Returns a set of files that a pattern names."""
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "encodingFormat": encoding,
        "includes": includes,
    }


def croissant_field(field: pa.Field, tables: str) -> dict[str, Any]:
    """Returns what a column of the samples is.

    Args:
        tables: identifier of the set of Parquet files that hold it.
    """
    source = {"fileSet": {"@id": tables}, "extract": {"column": field.name}}
    values = {
        "@type": "cr:Field",
        "@id": f"samples/{field.name}",
        "name": field.name,
        "description": (field.metadata or {}).get(b"description", b"").decode(),
        "source": source,
    }
    kind = field.type
    while pa.types.is_list(kind):
        values["repeated"], kind = True, kind.value_type
    if not pa.types.is_struct(kind):
        return values | {"dataType": _data_type(kind)}
    parts = [
        {
            "@type": "cr:Field",
            "@id": f"samples/{field.name}/{part.name}",
            "name": part.name,
            "dataType": _data_type(part.type),
            "source": {**source, "transform": {"jsonPath": part.name}},
        }
        for part in kind
    ]
    return values | {"subField": parts}


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind):
        return "sc:Integer"
    if pa.types.is_floating(kind):
        return "sc:Float"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "sc:Date" if pa.types.is_date(kind) else "sc:DateTime"
    return "sc:Text"
