"""One reader for each input format: from a part of a file to batches of raw rows."""

import json
import posixpath
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import ReadConfig
from pipeline.read.columns import (
    CAPTION_NAMES,
    INSTRUCTION_NAMES,
    PATH_NAMES,
    InputColumns,
    columns_of_record,
    kept_columns,
)
from pipeline.read.inputs import METADATA_NAMES, InputFile, InputFormat
from pipeline.read.kept import kept_text, kept_texts, spelled_out
from pipeline.read.rows import (
    IMAGE_SUFFIXES,
    RAW_SCHEMA,
    RawRow,
    rejected_row,
    row_of_record,
    row_or_reason,
)
from pipeline.read.splits import InputSplit
from pipeline.read.tar_rows import read_tar
from pipeline.read.texts import (
    CsvRows,
    MalformedLine,
    damaged,
    iterate_json,
    lines_of_range,
    open_text,
    split_tsv,
)
from pipeline.read.values import excerpt, plain_text, storable
from schemas.errors import RejectReason, SampleRejected
from schemas.storage import open_read, walk_files

BATCH_ROWS = 32_768


def read_split(split: InputSplit, config: ReadConfig) -> Iterator[pa.Table]:
    """Yields the rows of a part of an input file as tables of `RAW_SCHEMA`.

    Raises:
        ConfigError: if the file turns out to be damaged further on than its beginning.
    """
    try:
        if split.file.format is InputFormat.PARQUET:
            yield from _read_parquet(split, config)
        else:
            yield from _in_batches(_read_rows(split, config))
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        raise damaged(split.file.path, error) from error


def _read_rows(split: InputSplit, config: ReadConfig) -> Iterator[RawRow]:
    file = split.file
    if file.format is InputFormat.URL_LIST:
        for line in _lines(split):
            yield row_or_reason(_row_of_line, line)
    elif file.format is InputFormat.JSON_LINES:
        for line in _lines(split):
            yield row_or_reason(_row_of_json, line, file, config)
    elif file.format is InputFormat.JSON_LIST:
        with open_text(file.path) as text:
            for value in iterate_json(text):
                yield row_or_reason(_row_of_value, value, file, config)
    elif file.format is InputFormat.IMAGE_FOLDER:
        yield from _read_folder(file.path, config)
    elif file.format is InputFormat.TAR:
        yield from read_tar(file.path, file.table, config)
    else:
        yield from _read_fields(split, config)


def _lines(split: InputSplit) -> Iterator[str]:
    """Yields the lines of a part of a file that are not empty."""
    if not split.file.can_be_split:
        with open_text(split.file.path) as text:
            yield from (line.rstrip("\r\n") for line in text if line.strip())
    else:
        lines = lines_of_range(split.file.path, split.start, split.stop)
        yield from (line for line in lines if line.strip())


def _row_of_line(line: str) -> RawRow:
    url, _, caption = storable(line).partition("\t")
    return RawRow(url, caption)


def _row_of_json(line: str, file: InputFile, config: ReadConfig) -> RawRow:
    return _row_of_value(json.loads(line), file, config)


def _row_of_value(value: Any, file: InputFile, config: ReadConfig) -> RawRow:
    columns = columns_of_record(value, file.columns, config)
    return row_of_record(value, columns, config.as_captions)


def _read_fields(split: InputSplit, config: ReadConfig) -> Iterator[RawRow]:
    """Yields the rows of a CSV or TSV file."""
    file = split.file
    if file.format is InputFormat.CSV:
        with open_text(file.path, newline="") as text:
            parsed = CsvRows(text, len(config.column_names))
            yield from _rows_of_fields(parsed, None, file, config)
    else:
        header = config.column_names or _tsv_header(file.path)
        has_header = split.start == 0 and not config.column_names
        rows = islice(split_tsv(_lines(split)), int(has_header), None)
        yield from _rows_of_fields(rows, list(header), file, config)


def _tsv_header(path: str) -> tuple[str, ...]:
    with open_text(path) as text:
        return tuple(next(split_tsv(text), []))


def _rows_of_fields(
    rows: Iterator[list[str]], header: list[str] | None, file: InputFile, config: ReadConfig
) -> Iterator[RawRow]:
    if header is None:
        header = list(config.column_names) or next(rows)
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except MalformedLine as error:
            yield rejected_row(RejectReason.MALFORMED_ROW, f"the row cannot be parsed: {error}")
            continue
        yield row_or_reason(_row_of_fields, fields, header, file, config)


def _row_of_fields(
    fields: list[str], header: list[str], file: InputFile, config: ReadConfig
) -> RawRow:
    if len(fields) != len(header):
        raise SampleRejected(
            RejectReason.MALFORMED_ROW,
            f"it has {len(fields)} fields, the header {len(header)}: {excerpt(' '.join(fields))}",
        )
    values: dict[str, Any] = dict(zip(header, fields, strict=True))
    for name in (file.columns.conversations, *(name for name, _ in file.columns.kept)):
        if name is not None and not values[name]:
            values[name] = None
    return row_of_record(values, file.columns, config.as_captions)


def _read_folder(folder: str, config: ReadConfig) -> Iterator[RawRow]:
    """Yields the images below a folder, with the captions that stand beside them."""
    files = walk_files(folder)
    names = set(files)
    tabled = _told_by_tables(names, config)
    for path in files:
        if path.lower().endswith(IMAGE_SUFFIXES):
            yield row_or_reason(_row_of_image, path, folder, names, tabled, config)


Told = tuple[Any, dict[str, Any]]
"""What is told of an image: its caption or captions, and what is kept beside."""


def _row_of_image(
    path: str, folder: str, names: set[str], tabled: dict[str, Told], config: ReadConfig
) -> RawRow:
    stem = path.rsplit(".", 1)[0]
    caption, kept = tabled.get(path, (None, {}))
    if caption is None and f"{stem}.txt" in names:
        with open_text(f"{stem}.txt") as text:
            caption = " ".join(text.read().split())
    if f"{stem}.json" in names and (caption is None or config.keep_columns):
        with open_text(f"{stem}.json") as text:
            values = json.load(text)
        if isinstance(values, dict):
            own_caption, own = _told(values, config)
            caption, kept = own_caption if caption is None else caption, {**own, **kept}
    values = {"path": path[len(folder.rstrip("/")) + 1 :], "caption": caption}
    columns = InputColumns(url="path", caption="caption", conversations=None, hashes=())
    row = row_of_record(values, columns, as_captions=False)
    return row._replace(kept=kept_text(kept, [(name, name) for name in kept]))


def _told_by_tables(files: set[str], config: ReadConfig) -> dict[str, Told]:
    """Returns image path to what is told of it in the metadata tables of an image folder."""
    told: dict[str, Told] = {}
    for path in sorted(file for file in files if file.endswith(METADATA_NAMES)):
        folder = path.rsplit("/", 1)[0]
        for row in _records_of_table(path):
            name = _first_named(row, PATH_NAMES)
            caption, kept = _told(row, config)
            if name and (caption or kept):
                told[_named_file(folder, plain_text(name), files)] = caption, kept
    return told


def _named_file(folder: str, name: str, files: set[str]) -> str:
    """Returns the file that a table means: as it names it, or else as Windows spells paths."""
    spelled = (name, posixpath.normpath(name), posixpath.normpath(name.replace("\\", "/")))
    return next((path for path in (f"{folder}/{n}" for n in spelled) if path in files), "")


def _told(row: dict[str, Any], config: ReadConfig) -> Told:
    kept = {new: row[name] for name, new in kept_columns(row, config)}
    return _first_named(row, CAPTION_NAMES), kept


def _records_of_table(path: str) -> Iterator[dict[str, Any]]:
    if path.endswith(".parquet"):
        with open_read(path) as file:
            yield from pq.read_table(file).to_pylist()
        return
    with open_text(path, newline="") as text:
        if path.endswith(".jsonl"):
            yield from (value for value in iterate_json(text) if isinstance(value, dict))
            return
        rows = CsvRows(text)
        header = next(rows, [])
        yield from (dict(zip(header, fields, strict=False)) for fields in rows)


def _first_named(values: dict[str, Any], names: tuple[str, ...]) -> Any:
    lowered = {name.strip().lower(): value for name, value in values.items()}
    return next((lowered[name] for name in names if lowered.get(name)), None)


def _read_parquet(split: InputSplit, config: ReadConfig) -> Iterator[pa.Table]:
    columns = split.file.columns
    names = [columns.url, columns.caption, columns.conversations, *columns.hashes]
    names += [name for name, _ in columns.kept]
    if columns.conversations is not None:
        names += INSTRUCTION_NAMES
    with open_read(split.file.path) as file:
        parquet = pq.ParquetFile(file)
        there = set(parquet.schema_arrow.names)
        wanted = [name for name in dict.fromkeys(names) if name in there]
        groups = list(range(split.start, split.stop))
        for batch in parquet.iter_batches(
            BATCH_ROWS, row_groups=groups, columns=wanted, use_threads=False
        ):
            yield _raw_table(pa.Table.from_batches([batch]), split.file, config)


def _raw_table(table: pa.Table, file: InputFile, config: ReadConfig) -> pa.Table:
    """Returns a batch of a Parquet file as raw rows: whole columns where they are plain text."""
    columns = file.columns
    url, caption = columns.url, columns.caption
    table = spelled_out(table, columns.kept)
    if columns.conversations is None and not columns.hashes and url and caption:
        texts = [_as_string(table[name]) for name in (url, caption)]
        kept = _kept_of_all(table, columns)
        if kept is not None and all(text is not None for text in texts):
            nulls = pa.nulls(table.num_rows, pa.string())
            found = {"url": texts[0], "caption": texts[1], "kept": kept}
            return pa.table(dict.fromkeys(RAW_SCHEMA.names, nulls) | found, schema=RAW_SCHEMA)
    rows = (
        row_or_reason(row_of_record, value, file.columns, config.as_captions)
        for value in _as_bytes(table).to_pylist()
    )
    return next(_in_batches(rows, table.num_rows))


def _kept_of_all(table: pa.Table, columns: InputColumns) -> pa.Array | None:
    """Returns what the rows hold of the columns that are kept; None where one is no text."""
    try:
        return kept_texts(table, columns.kept)
    except (SampleRejected, UnicodeDecodeError):
        return None


def _as_bytes(table: pa.Table) -> pa.Table:
    """Returns a table whose texts are bytes where some are not in UTF-8 though the file says so."""
    for place, field in enumerate(table.schema):
        bytes_type = BYTES_OF.get(field.type)
        if bytes_type is None:
            continue
        try:
            table.column(place).validate(full=True)
        except pa.ArrowInvalid:
            table = table.set_column(place, field.name, pc.cast(table.column(place), bytes_type))
    return table


BYTES_OF = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.list_(pa.string()): pa.list_(pa.binary()),
    pa.large_list(pa.string()): pa.large_list(pa.binary()),
}


def _as_string(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Returns a column as texts; None where a row is no text, or not in UTF-8.

    Writers without Parquet's mark for UTF-8 leave texts as bytes.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = pc.cast(column, kind)
    if pa.types.is_fixed_size_binary(kind):
        column = pc.cast(column, pa.binary())
    elif kind not in TEXT_TYPES:
        return None
    try:
        texts = pc.cast(column, pa.string())
        texts.validate(full=True)  # a file may claim UTF-8 and hold something else
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None
    return texts


TEXT_TYPES = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
)


def _in_batches(rows: Iterable[RawRow], size: int = BATCH_ROWS) -> Iterator[pa.Table]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        columns = zip(*batch, strict=True)
        arrays = [pa.array(column, pa.string()) for column in columns]
        yield pa.table(arrays, schema=RAW_SCHEMA)
