"""From a record type to its Arrow schema, and the Parquet files that carry it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import DatasetError

SCHEMA_VERSION = 5
"""Raised with every change of a column's meaning; files of another version are refused."""

VERSION_FIELD = b"aligngpt.schema_version"
RECORD_FIELD = b"aligngpt.record"
KEPT_FIELD = b"aligngpt.kept"
"""Marks a column of the input's own, beside those of the record."""

SIGNAL_FIELD = b"aligngpt.signal"
"""Marks a column that `score.signals` asked for; its value says how it was made."""

EXCHANGED_FIELD = b"aligngpt.exchanged"
"""Marks a column of a scored shard with a signal of exchanged pairs; its value is as JSON the
signal's name and how many rows the shard had then."""

RECAPTION_FIELD = b"aligngpt.recaption"
"""Marks a column that `recaption` made; its value says by which model and how."""

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Column:
    """What a field of a record is on disk."""

    type: pa.DataType
    description: str
    """Meaning, unit and range, for people; stored in the file beside the column."""


@dataclass(frozen=True, slots=True)
class KeptColumns:
    """Marks a field that holds the input's own columns by name; each is a column on disk."""


def arrow_schema(record: type) -> pa.Schema:
    """Returns the Arrow schema of a record type whose fields are `Annotated` with a `Column`.

    A field whose type admits None is nullable. One of `KeptColumns` is left out: which those are,
    only the input says.

    Raises:
        TypeError: if a field has no `Column`.
    """
    hints = get_type_hints(record, include_extras=True)
    fields = []
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        if any(isinstance(item, KeptColumns) for item in get_args(hint)[1:]):
            continue
        column = _column_of(hint)
        if column is None:
            raise TypeError(f"{record.__name__}.{field.name} has no Column annotation")
        is_nullable = type(None) in get_args(get_args(hint)[0])
        fields.append(
            pa.field(
                field.name,
                column.type,
                nullable=is_nullable,
                metadata={"description": column.description},
            )
        )
    metadata = {VERSION_FIELD: str(SCHEMA_VERSION).encode(), RECORD_FIELD: record.__name__.encode()}
    return pa.schema(fields, metadata=metadata)


def _column_of(hint: Any) -> Column | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((item for item in get_args(hint)[1:] if isinstance(item, Column)), None)


def kept_field(name: str, kind: pa.DataType) -> pa.Field:
    """Returns the field of a column of the input's own."""
    description = "of the input, as read.keep_columns asks"
    return pa.field(name, kind, metadata={"description": description, KEPT_FIELD: b"1"})


def signal_field(name: str, description: str, made: str) -> pa.Field:
    """Returns the field of a signal: it goes along as the input's own columns do.

    Args:
        made: how, as JSON.
    """
    told = {"description": description, KEPT_FIELD: b"1", SIGNAL_FIELD: made.encode()}
    return pa.field(name, pa.float32(), metadata=told)


def exchanged_field(signal: str, rows: int) -> pa.Field:
    """Returns the field of what a signal is of pictures with captions of other pairs.

    Args:
        rows: of the shard: the others are found by their places in it.
    """
    told = {
        "description": f"{signal} of the picture with captions of other pairs, its control",
        EXCHANGED_FIELD: json.dumps({"signal": signal, "rows": rows}).encode(),
    }
    # No signal is called so: a space is in none of their names.
    return pa.field(f"{signal} exchanged", pa.list_(pa.float32()), metadata=told)


def exchanged_fields(schema: pa.Schema) -> dict[str, pa.Field]:
    """Returns signal to the field of its exchanged pairs, of a scored file."""
    fields = [_as_written(field) for field in schema if EXCHANGED_FIELD in (field.metadata or {})]
    return {json.loads(field.metadata[EXCHANGED_FIELD])["signal"]: field for field in fields}


def recaption_fields(schema: pa.Schema) -> list[pa.Field]:
    """Returns the fields of a file's columns that tell of captions by a model."""
    return [field for field in kept_fields(schema) if RECAPTION_FIELD in field.metadata]


def kept_fields(schema: pa.Schema) -> list[pa.Field]:
    """Returns the fields of a file's columns beside those of the record: the input's, signals."""
    return [_as_written(field) for field in schema if KEPT_FIELD in (field.metadata or {})]


def signal_fields(schema: pa.Schema) -> list[pa.Field]:
    """Returns the fields of a file's columns that are signals."""
    return [field for field in kept_fields(schema) if SIGNAL_FIELD in field.metadata]


def _as_written(field: pa.Field) -> pa.Field:
    """Returns the field of a column of a file without what Parquet says of it."""
    told = {key: value for key, value in field.metadata.items() if not key.startswith(b"PARQUET:")}
    return pa.field(field.name, field.type, metadata=told)


def with_kept(schema: pa.Schema, kept: Sequence[pa.Field]) -> pa.Schema:
    """Returns the schema of a record with the input's own columns after those of the record."""
    return pa.schema([*schema, *kept], metadata=schema.metadata)


def table_from_records(records: list[Any], schema: pa.Schema) -> pa.Table:
    """Returns the records, all of the type that `schema` was made from, as a table."""
    kept = {field.name for field in kept_fields(schema)}
    columns = {}
    for field in schema:
        if field.name in kept:
            values = [(record.kept or {}).get(field.name) for record in records]
        else:
            values = [getattr(record, field.name) for record in records]
        columns[field.name] = pa.array(values, type=field.type)
    return pa.table(columns, schema=schema)


def records_from_table(table: pa.Table, record: type[Record]) -> list[Record]:
    """Returns the rows of a table that `table_from_records` made of such records."""
    kept = [field.name for field in kept_fields(table.schema)]
    rows = table.drop_columns(kept).to_pylist()
    if not kept:
        return [record(**row) for row in rows]
    own = table.select(kept).to_pylist()
    return [record(**{**row, "kept": values}) for row, values in zip(rows, own, strict=True)]


def write_table(
    table: pa.Table, file: IO[bytes] | str, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a table of one of our schemas as Parquet, the same bytes for the same table.

    Args:
        metadata: more to store in the file's schema metadata (a fingerprint, a model's name).
    """
    extra = {
        f"aligngpt.{name}".encode(): value.encode() for name, value in (metadata or {}).items()
    }
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **extra})
    pq.write_table(table, file, compression="zstd", compression_level=3)


def read_table(
    file: IO[bytes] | str, expected: pa.Schema, columns: list[str] | None = None
) -> pa.Table:
    """Returns the table in a Parquet file that `write_table` wrote.

    Columns that have come since it was written, all of them nullable, are null.

    Raises:
        DatasetError: if the file is of another record type or schema version.
    """
    with pq.ParquetFile(file) as parquet:
        check_schema(parquet.schema_arrow, expected, str(file))
        table = parquet.read(columns=columns)
    for name in expected.names if columns is None else columns:
        if name not in table.column_names and name in expected.names:
            table = table.append_column(
                expected.field(name), pa.nulls(len(table), expected.field(name).type)
            )
    return table


def check_schema(found: pa.Schema, expected: pa.Schema, name: str) -> None:
    """Raises `DatasetError` unless `found` is of the record type and version of `expected`."""
    metadata = found.metadata or {}
    version = metadata.get(VERSION_FIELD, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise DatasetError(
            f"{name} has schema version {version}, this program reads version {SCHEMA_VERSION}: "
            "use the version of aligngpt that wrote it, or curate again into a new folder"
        )
    record = metadata.get(RECORD_FIELD, b"none").decode()
    wanted = (expected.metadata or {}).get(RECORD_FIELD, b"none").decode()
    if record != wanted:
        raise DatasetError(f"{name} holds {record} rows, expected {wanted}")


def file_metadata(found: pa.Schema) -> dict[str, str]:
    """Returns our own metadata of a file's schema, without its prefix."""
    prefix = b"aligngpt."
    return {
        key.removeprefix(prefix).decode(): value.decode()
        for key, value in (found.metadata or {}).items()
        if key.startswith(prefix)
    }
