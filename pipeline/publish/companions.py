"""What lies beside the shards of a publication: indexes, checksums, Croissant."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import yaml

from pipeline.dataset.croissant import CONTEXT, croissant_field, file_set
from pipeline.publish.card import ENDINGS, About
from pipeline.publish.features import parquet_schema
from pipeline.publish.shards import Published

ENERGON_SPLITS = {"train": "train", "validation": "val"}
"""Our splits to those that Megatron-Energon asks for."""

ENERGON_DATASET = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
"""Captions and conversations, one image and several: each user cooks them as their model wants."""


def energon_files(shards: Sequence[Published]) -> dict[str, str]:
    """Returns the files below `.nv-meta/` that `energon prepare` would have written.

    Source: megatron-energon 5.1.1, `flavors/webdataset/prepare.py`; 7.4.1 reads `.info.json`.
    """
    counts = {shard.name: shard.samples for shard in shards}
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for name in counts:
        parts[ENERGON_SPLITS[name.split("/", 1)[0]]].append(name)
    return {
        ".nv-meta/.info.yaml": yaml.safe_dump({"shard_counts": counts}, sort_keys=False),
        ".nv-meta/.info.json": json.dumps({"shard_counts": counts}, indent=2) + "\n",
        ".nv-meta/split.yaml": yaml.safe_dump(
            {"exclude": [], "split_parts": parts}, sort_keys=False
        ),
        ".nv-meta/dataset.yaml": yaml.safe_dump(ENERGON_DATASET, sort_keys=False),
    }


def wids_index(shards: Sequence[Published]) -> str:
    """Returns the list of a split's shards that `wids` reads."""
    entries = [
        {
            "url": shard.name.rsplit("/", 1)[-1],
            "nsamples": shard.samples,
            "filesize": shard.num_bytes,
        }
        for shard in shards
    ]
    return json.dumps({"wids_version": 1, "shardlist": entries}, indent=2) + "\n"


def checksums(files: Sequence[Published]) -> str:
    """Returns every file's hash, as `sha256sum -c` reads it."""
    return "".join(f"{file.sha256}  {file.name}\n" for file in files)


def croissant(
    about: About,
    shards: Sequence[Published],
    image_formats: Sequence[str],
    kept: Sequence[pa.Field],
) -> str:
    """Returns the publication's description for catalogues, as JSON-LD.

    Source: the Croissant format specification, version 1.0, of MLCommons.
    """
    files = [
        {
            "@type": "cr:FileObject",
            "@id": shard.name,
            "name": shard.name,
            "contentUrl": shard.name,
            "contentSize": f"{shard.num_bytes} B",
            "encodingFormat": f"application/x-{ENDINGS[about.form]}",
            "sha256": shard.sha256,
        }
        for shard in shards
    ]
    tables = about.form == "parquet"
    sets, records = _tables(kept) if tables else _archives(shards, image_formats)
    values: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": about.name,
        "description": f"{sum(shard.samples for shard in shards):,} image-text samples, curated "
        "by aligngpt.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": about.licence,
        "inLanguage": list(about.language),
        "version": "1.0.0",
        "distribution": [*files, *sets],
        "recordSet": records,
    }
    return json.dumps(values, indent=2) + "\n"


def _tables(kept: Sequence[pa.Field]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    name = "tables"
    known = [field for field in parquet_schema(kept) if field.name not in ("image", "other_images")]
    image = _field("samples/image", "sc:ImageObject", name, {"column": "image"})
    record = {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "key": {"@id": "samples/key"},
        "field": [image, *(croissant_field(field, name) for field in known)],
    }
    return [file_set(name, "application/x-parquet", "*/*.parquet")], [record]


def _archives(
    shards: Sequence[Published], image_formats: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kinds = [
        ("texts", "text/plain", "*.txt", "sc:Text"),
        *(
            (f"images_{ending}", f"image/{ending}", f"*.{ending}", "sc:ImageObject")
            for ending in image_formats
        ),
    ]
    within = [{"@id": shard.name} for shard in shards]
    sets = [
        {**file_set(name, encoding, pattern), "containedIn": within}
        for name, encoding, pattern, _ in kinds
    ]
    records = [
        {
            "@type": "cr:RecordSet",
            "@id": f"{name}_records",
            "name": f"{name}_records",
            "field": [
                _field(f"{name}_records/file", "sc:Text", name, {"fileProperty": "filename"}),
                _field(f"{name}_records/content", kind, name, {"fileProperty": "content"}),
            ],
        }
        for name, _, _, kind in kinds
    ]
    return sets, records


def _field(name: str, kind: str, files: str, extract: dict[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name.rsplit("/", 1)[-1],
        "dataType": kind,
        "source": {"fileSet": {"@id": files}, "extract": extract},
    }
