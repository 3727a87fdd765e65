"""Columns of the input that go along as they are: what rows hold, and of what type they are.

While rows are sorted, what they hold under these columns is one JSON text. The types that are seen
are noted for each part of the input, and joined when all parts are read: so a column has one type
in all shards, and no row is lost to a value that fits none that was guessed.
"""

import base64
import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.read.values import plain_text, text_of
from schemas.columns import kept_field
from schemas.errors import ConfigError
from schemas.records import json_text

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?|[nN][aA][nN]")
"""A field of CSV that is a number and loses nothing as one: 7, but not 007."""

KeptColumn = tuple[str, str]
"""Name of a column in the input, and its name in the dataset."""


def kept_text(values: dict[str, Any], columns: Sequence[KeptColumn]) -> str | None:
    """Returns what a row holds under the columns, as a JSON object; None if that is nothing.

    Raises:
        SampleRejected: if a text in it is not valid Unicode.
    """
    found = {new: _plain(values.get(name), name) for name, new in columns}
    found = {new: value for new, value in found.items() if value is not None}
    return json_text(found) if found else None


def _plain(value: Any, name: str) -> Any:
    """Returns a value as JSON has it: bytes are texts, and a number that is none is missing."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, str | bytes):
        return text_of(value, f"its {name}")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, dict):
        return {plain_text(key): _plain(item, name) for key, item in value.items()}
    return str(value)


def kept_texts(table: pa.Table, columns: Sequence[KeptColumn]) -> pa.Array:
    """Returns `kept_text` of each row of a table.

    Raises:
        SampleRejected: if a text in it is not valid Unicode.
    """
    if not columns:
        return pa.nulls(table.num_rows, pa.string())
    names = list(dict.fromkeys(name for name, _ in columns))
    rows = table.select(names).to_pylist()
    return pa.array([kept_text(row, columns) for row in rows], pa.string())


def spelled_out(table: pa.Table, columns: Sequence[KeptColumn]) -> pa.Table:
    """Returns a table whose kept dates, times and decimals are texts that lose nothing."""
    for name, _ in columns:
        place = table.schema.get_field_index(name)
        kind = table.schema.field(place).type
        if _is_spelled(kind) or pa.types.is_time(kind):
            texts = pc.cast(table.column(place), pa.string())
            table = table.set_column(place, name, texts)
    return table


def declared_types(path: str, schema: pa.Schema, columns: Sequence[KeptColumn]) -> pa.Schema:
    """Returns the types that a Parquet file gives to the kept columns, by their new names.

    Raises:
        ConfigError: if one is of a type that cannot be kept.
    """
    fields = []
    for name, new in columns:
        found = schema.field(name).type
        kind = _storable_type(found)
        if kind is None:
            raise ConfigError(
                f"{path}: column {name!r} is of the type {found}, which read.keep_columns cannot "
                "keep: texts, numbers, booleans, dates and times, and lists and records of texts "
                "and numbers can be"
            )
        fields.append(pa.field(new, kind))
    return pa.schema(fields)


def _storable_type(kind: pa.DataType, is_inner: bool = False) -> pa.DataType | None:
    """Returns the type that a column is kept as; None if it cannot be."""
    if pa.types.is_dictionary(kind):
        return _storable_type(kind.value_type, is_inner)
    if _is_text(kind) or (pa.types.is_time(kind) and not is_inner):
        return pa.string()
    if _is_spelled(kind):
        return None if is_inner else kind
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return kind
    if pa.types.is_null(kind):
        return None if is_inner else kind
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = _storable_type(kind.value_type, True)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(kind) and kind.num_fields:
        parts = [(field.name, _storable_type(field.type, True)) for field in kind]
        return None if any(part is None for _, part in parts) else pa.struct(parts)
    return None


def _is_text(kind: pa.DataType) -> bool:
    texts = (pa.string(), pa.large_string(), pa.string_view())
    return kind in (*texts, pa.binary(), pa.large_binary(), pa.binary_view())


def _is_spelled(kind: pa.DataType) -> bool:
    """Returns whether values of a type have no form of their own in JSON, and are spelled."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_decimal(kind))


def found_types(texts: pa.ChunkedArray, is_of_fields: bool) -> pa.Schema:
    """Returns the types of what rows hold, as `kept_text` made them.

    Args:
        is_of_fields: whether all values are fields of CSV or TSV, which can stand for numbers.
    """
    values: dict[str, list[Any]] = {}
    for text in texts.drop_null().to_pylist():
        for name, value in json.loads(text).items():
            values.setdefault(name, []).append(value)
    find = _type_of_fields if is_of_fields else _type_of_values
    return pa.schema([(name, find(found)) for name, found in values.items()])


def _type_of_fields(fields: Sequence[str]) -> pa.DataType:
    if all(WHOLE.fullmatch(field) for field in fields):
        return pa.int64()
    return pa.float64() if all(NUMBER.fullmatch(field) for field in fields) else pa.string()


def _type_of_values(values: Sequence[Any]) -> pa.DataType:
    """Returns the type of JSON values; what has no one type, and every object, becomes a text."""
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return pa.string()
    inner = kind
    while pa.types.is_list(inner):
        inner = inner.value_type
    return pa.string() if pa.types.is_struct(inner) else kind


class KeptTypes:
    """The types that were seen of the kept columns, in one part of the input or in all."""

    def __init__(self, seen: Iterable[pa.Schema] = ()) -> None:
        self._seen: dict[str, set[pa.DataType]] = {}
        for schema in seen:
            self.add(schema)

    def add(self, schema: pa.Schema) -> None:
        """Takes note of the types of some rows."""
        for field in schema:
            self._seen.setdefault(field.name, set()).add(field.type)

    def joined(self, names: Iterable[str]) -> pa.Schema:
        """Returns a field for each name, of a type that holds all that was seen under it."""
        return pa.schema([pa.field(name, _joined(self._seen.get(name, set()))) for name in names])


def _joined(kinds: set[pa.DataType]) -> pa.DataType:
    """Returns the type that holds the values of all these types: text if no other does."""
    schemas = [pa.schema([("", kind)]) for kind in sorted(kinds, key=str)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string() if kinds else pa.null()


def types_as_text(schema: pa.Schema) -> str:
    """Returns types as they are stored while the input is read."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


def types_from_text(text: str) -> pa.Schema:
    """Returns types that `types_as_text` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def without_unknown(types: pa.Schema) -> list[pa.Field]:
    """Returns the fields of a dataset's own columns; one that no row has a value of is a text."""
    return [kept_field(field.name, _known(field.type)) for field in types]


def _known(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_known(kind.value_type))
    return pa.string() if pa.types.is_null(kind) else kind


def typed_columns(texts: pa.ChunkedArray, fields: Sequence[pa.Field]) -> Iterator[pa.Array]:
    """Yields the columns that rows hold, as `kept_text` made them, each in its type."""
    rows = [{} if text is None else json.loads(text) for text in texts.to_pylist()]
    for field in fields:
        yield _typed([row.get(field.name) for row in rows], field.type)


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        texts = [v if v is None or isinstance(v, str) else json_text(v) for v in values]
        return pa.array(texts, kind)
    if _is_spelled(kind):
        texts = pa.array([None if v is None else str(v) for v in values], pa.string())
        return pc.cast(texts, kind)
    if pa.types.is_integer(kind):
        return pa.array([None if v is None else int(v) for v in values], kind)
    if pa.types.is_floating(kind):
        return pa.array([_number(v) for v in values], pa.float64()).cast(kind)
    return pa.array(values, kind)


def _number(value: str | float | None) -> float | None:
    number = None if value is None else float(value)
    return None if number is None or math.isnan(number) else number


def as_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the values of a column as texts, the same for the same values."""
    if pa.types.is_nested(column.type):
        texts = [None if value is None else json_text(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return pc.cast(column, pa.string())
