"""Captions by a model on their way into train shards: the chosen one, and what became of both."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.columns import (
    KEPT_FIELD,
    RECAPTION_FIELD,
    SIGNAL_FIELD,
    file_metadata,
    read_table,
    signal_fields,
)
from schemas.errors import DatasetError
from schemas.records import LEVELLED_SCHEMA, RECAPTIONED_SCHEMA, StoredSample
from schemas.shards import DatasetLayout
from schemas.storage import open_read

COLUMNS = [field for field in RECAPTIONED_SCHEMA if field.name not in LEVELLED_SCHEMA.names]
"""What train shards tell of captions by a model; score and level stand there anyhow."""


def made_fields(layout: DatasetLayout, shard: int) -> list[pa.Field]:
    """Returns the fields of the columns that tell of captions by a model, with how they were made.

    Raises:
        DatasetError: if the shard's file does not say so.
    """
    path = layout.recaptioned(shard)
    with open_read(path) as file:
        made = file_metadata(pq.read_schema(file)).get("recaption")
    if made is None:
        raise DatasetError(f"{path} does not say what made its captions: run `recaption` again")
    marks = {KEPT_FIELD: b"1", RECAPTION_FIELD: made.encode()}
    return [field.with_metadata({**field.metadata, **marks}) for field in COLUMNS]


def with_recaptions(
    layout: DatasetLayout, shard: int, rows: Sequence[StoredSample]
) -> list[StoredSample]:
    """Returns the samples with the better of their captions, and both among what goes along.

    Signals that a sample has of the caption before are null where another took its place; heads
    look at the picture alone.
    """
    names = [field.name for field in COLUMNS]
    with open_read(layout.recaptioned(shard)) as file:
        table = read_table(file, RECAPTIONED_SCHEMA, ["key", *names])
    told = {row.pop("key"): row for row in table.to_pylist()}
    stale = dict.fromkeys(_of_captions(layout, shard))
    return [_with_recaption(row, told[row.key], stale) for row in rows]


def _with_recaption(
    row: StoredSample, told: dict[str, Any], stale: dict[str, None]
) -> StoredSample:
    if not told["is_recaptioned"]:
        return replace(row, kept={**(row.kept or {}), **told})
    known = {name: None if name in stale else value for name, value in (row.kept or {}).items()}
    return replace(row, caption=told["model_caption"], kept={**known, **told})


def _of_captions(layout: DatasetLayout, shard: int) -> list[str]:
    """Returns the signals that say something of a caption: all but heads."""
    with open_read(layout.scored(shard)) as file:
        fields = signal_fields(pq.read_schema(file))
    made = {field.name: json.loads(field.metadata[SIGNAL_FIELD]) for field in fields}
    return [name for name, how in made.items() if how["kind"] != "head"]
