"""Text files as rows: lines of a byte range, CSV, TSV and long JSON lists, never held whole."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO, cast

from schemas.errors import ConfigError
from schemas.storage import open_read

MAX_FIELD_CHARACTERS = 1 << 20
"""Longest field of a CSV file; beyond it a row counts as malformed (a quote never closed)."""

CHUNK_CHARACTERS = 1 << 20

MAX_RECORD_CHARACTERS = 1 << 25
"""Longest member of a JSON list; a broken one is not looked for the end of any further."""


class MalformedLine(ValueError):
    """This row of a text file cannot be parsed; the file is fine."""


@contextmanager
def open_text(path: str, newline: str = "\n") -> Iterator[TextIO]:
    """Opens a text file, gzip-compressed or not, as UTF-8 with or without a byte order mark.

    Bytes that are not UTF-8 become lone surrogates, so that they can be found row by row.
    """
    with open_read(path) as raw:
        plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.endswith(".gz") else raw
        yield io.TextIOWrapper(
            plain, encoding="utf-8-sig", errors="surrogateescape", newline=newline
        )


def lines_of_range(path: str, start: int, stop: int) -> Iterator[str]:
    """Returns the lines that begin in [start, stop) of an uncompressed file, in bytes."""
    with open_read(path) as file:
        if start > 0:
            file.seek(start - 1)
            file.readline()
        while file.tell() < stop and (line := file.readline()):
            text = line.decode("utf-8", "surrogateescape")
            yield text.removeprefix("\ufeff").rstrip("\r\n")


def split_csv(text: TextIO) -> Iterator[list[str]]:
    """Yields the rows of a CSV file; empty lines are no rows.

    Raises:
        MalformedLine: for a row that cannot be parsed; asking for the next one goes on.
    """
    return CsvRows(text)


class CsvRows(Iterator[list[str]]):
    """The rows of a CSV file; goes on after a `MalformedLine`."""

    def __init__(self, text: TextIO) -> None:
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        self._reader = csv.reader(text)

    def __next__(self) -> list[str]:
        """Returns the next row."""
        while True:
            try:
                row = next(self._reader)
            except csv.Error as error:
                raise MalformedLine(str(error)) from error
            if row:
                return row


def split_tsv(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields the fields of each line that is not empty: one line is one row, as TSV defines it.

    A field that is wholly in quotes loses them, since spreadsheets and pandas write it so.
    """
    for line in lines:
        line = line.rstrip("\r\n")
        if line.strip():
            yield [_unquote(field) for field in line.split("\t")]


def _unquote(field: str) -> str:
    if len(field) >= 2 and field.startswith('"') and field.endswith('"'):
        return field[1:-1].replace('""', '"')
    return field


def iterate_json(text: TextIO) -> Iterator[Any]:
    """Yields the members of a JSON list, or of a sequence of JSON values, one at a time.

    Raises:
        ValueError: where the text stops being JSON.
    """
    decoder = json.JSONDecoder()
    buffer, position, is_list, is_first = "", 0, False, True
    while True:
        while position < len(buffer) and buffer[position] in " \t\r\n,":
            position += 1
        if position == len(buffer):
            buffer, position = text.read(CHUNK_CHARACTERS), 0
            if not buffer:
                if is_list:
                    raise ValueError("the JSON list is not closed: the file is cut short")
                return
            continue
        if is_first and buffer[position] == "[":
            is_list, is_first, position = True, False, position + 1
            continue
        if is_list and buffer[position] == "]":
            return
        is_first = False
        try:
            value, end = decoder.raw_decode(buffer, position)
        except ValueError:
            size = len(buffer) - position
            more = text.read(max(CHUNK_CHARACTERS, size)) if size < MAX_RECORD_CHARACTERS else ""
            if not more:
                raise
            buffer, position = buffer[position:] + more, 0
            continue
        yield value
        position = end


def field_names(rows: Iterable[Any]) -> list[str]:
    """Returns the names that the first records of a JSON file use, in order of appearance.

    Raises:
        ValueError: if there are no records.
    """
    names: dict[str, None] = {}
    for row in rows:
        if isinstance(row, dict):
            names.update(dict.fromkeys(row))
    if not names:
        raise ValueError("it holds no JSON objects")
    return list(names)


def damaged(path: str, error: Exception) -> ConfigError:
    """Returns the error that says that a file, thought good at first, is broken further on."""
    return ConfigError(f"{path} is damaged: {error}; mend or leave it out, and run again")
