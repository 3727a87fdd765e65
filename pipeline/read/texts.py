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

MAX_ROW_LINES = 1000
"""Most lines of one row of a CSV file."""

SHOWN_CHARACTERS = 120
"""Of a malformed line, in its message."""

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
    """Yields the lines that begin in [start, stop) of an uncompressed file, in bytes."""
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
    """The rows of a CSV file; goes on after a `MalformedLine`.

    A row of several lines is believed only if it is closed as CSV has it and as wide as the first
    row. Otherwise a quote in its first line was never closed: that line alone is malformed, and
    reading goes on with the line after it.
    """

    def __init__(self, text: TextIO, width: int = 0) -> None:
        """Takes a file opened with `newline=""`.

        Args:
            width: fields of a row; 0 takes those of the first row.
        """
        csv.field_size_limit(MAX_FIELD_CHARACTERS)
        self._lines = _Lines(text)
        self._reader = csv.reader(self._lines)
        self._width = width

    def __next__(self) -> list[str]:
        """Returns the next row."""
        while True:
            self._lines.taken.clear()
            try:
                row = next(self._reader)
                fault = self._fault(row)
            except csv.Error as error:
                row, fault = [], str(error)
            if fault is not None:
                raise self._malformed(fault)
            if row:
                self._width = self._width or len(row)
                return row

    def _fault(self, row: list[str]) -> str | None:
        """Returns what is wrong with a row of several lines; None if nothing is."""
        lines = self._lines.taken
        if len(lines) < 2:
            is_open = bool(lines) and self._lines.is_at_end and _strict_fault(lines)
            return "a quote is still open at the end of the file" if is_open else None
        fault = _strict_fault(lines)
        if fault is None and self._width and len(row) != self._width:
            fault = f"with the lines that it takes in it has {len(row)} fields, not {self._width}"
        if fault is None and len(lines) > MAX_ROW_LINES:
            fault = f"it goes on for {len(lines):,} lines"
        return fault and f"a quote is never closed ({fault})"

    def _malformed(self, fault: str) -> MalformedLine:
        """Returns the error that names the row, and sees to it that its other lines are read."""
        first, number = self._lines.give_back()
        self._reader = csv.reader(self._lines)
        return MalformedLine(f"line {number:,}: {fault}: {_shown(first)}")


def _strict_fault(lines: list[str]) -> str | None:
    """Returns why the lines are not one row of CSV, by its letter; None if they are.

    In the wild a quote within a field often stands alone, which is read as it is; but a field of
    several lines that ends so was never meant to be one.
    """
    try:
        list(csv.reader(lines, strict=True))
    except csv.Error as error:
        return str(error)
    return None


def _shown(line: str) -> str:
    text = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip("\r\n")
    return repr(text[:SHOWN_CHARACTERS])


class _Lines(Iterator[str]):
    """The lines of a text, of which some can be given back to be read again."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._waiting: list[str] = []
        self._number = 0
        self.taken: list[str] = []
        """Lines that were read since this list was cleared."""
        self.is_at_end = False

    def __next__(self) -> str:
        """Returns the next line with its end."""
        line = self._waiting.pop() if self._waiting else self._text.readline()
        self.is_at_end = not line
        if not line:
            raise StopIteration
        self._number += 1
        self.taken.append(line)
        return line

    def give_back(self) -> tuple[str, int]:
        """Returns the first line taken and its number; the others will be read again."""
        first, *others = self.taken
        self._waiting += reversed(others)
        self._number -= len(others)
        return first, self._number


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
