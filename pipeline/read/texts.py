"""Text files as rows: lines of a byte range, CSV, TSV and long JSON lists, never held whole."""

import codecs
import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TextIO, cast

from pipeline.read.values import excerpt
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


UTF8 = "utf-8-sig"
"""UTF-8, with or without a byte order mark."""

WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks of encodings of two or four bytes a character; the longer ones first."""

LOOKED_AT_BYTES = 64
"""Of a text, to find its encoding."""

DELIMITERS = ";\t|"
"""What separates the fields of a CSV file whose first line has no comma."""


class MalformedLine(ValueError):
    """This row of a text file cannot be parsed; the file is fine."""


@contextmanager
def open_text(path: str, newline: str = "\n") -> Iterator[TextIO]:
    """Opens a text file, gzip-compressed or not, as UTF-8 or as its byte order mark says.

    What is no character becomes a lone surrogate, so that it can be found row by row.

    Raises:
        ValueError: if it looks like another encoding that it does not name.
    """
    with open_read(path) as raw:
        plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if path.endswith(".gz") else raw
        encoding = encoding_of(plain.read(LOOKED_AT_BYTES))
        plain.seek(0)
        yield io.TextIOWrapper(
            plain, encoding=encoding, errors=_on_errors(encoding), newline=newline
        )


def encoding_of(head: bytes) -> str:
    """Returns the encoding of a text by its first bytes: UTF-8 if they do not say another.

    Raises:
        ValueError: if every second byte is 0, as in UTF-16, and no mark says so.
    """
    for mark, encoding in WIDE_MARKS:
        if head.startswith(mark) and len(head) > len(mark):
            return encoding
    if len(head) >= 8 and (not any(head[::2]) or not any(head[1::2])):
        raise ValueError("it looks like UTF-16 without a byte order mark: save it as UTF-8")
    return UTF8


def decoded_text(data: bytes) -> str:
    """Returns a text of bytes, as `open_text` would read it.

    Raises:
        ValueError: if it looks like another encoding that it does not name.
    """
    encoding = encoding_of(data[:LOOKED_AT_BYTES])
    return data.decode(encoding, _on_errors(encoding))


def _on_errors(encoding: str) -> str:
    return "surrogateescape" if encoding == UTF8 else "surrogatepass"


def file_encoding(path: str) -> str:
    """Returns the encoding of a text file, compressed or not.

    Raises:
        ValueError: if it looks like another encoding that it does not name.
    """
    with open_text(path) as text:
        return cast(io.TextIOWrapper, text).encoding


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
        self._delimiter = _delimiter(next(self._lines, ""))
        if self._lines.taken:
            self._lines.give_back(0)
        self._reader = csv.reader(self._lines, delimiter=self._delimiter)
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
            is_open = bool(lines) and self._lines.is_at_end and self._strict_fault(lines)
            return "a quote is still open at the end of the file" if is_open else None
        fault = self._strict_fault(lines)
        if fault is None and self._width and len(row) != self._width:
            fault = f"with the lines that it takes in it has {len(row)} fields, not {self._width}"
        if fault is None and len(lines) > MAX_ROW_LINES:
            fault = f"it goes on for {len(lines):,} lines"
        return fault and f"a quote is never closed ({fault})"

    def _malformed(self, fault: str) -> MalformedLine:
        """Returns the error that names the row, and sees to it that its other lines are read."""
        first, number = self._lines.give_back(1)
        self._reader = csv.reader(self._lines, delimiter=self._delimiter)
        return MalformedLine(f"line {number:,}: {fault}: {_shown(first)}")

    def _strict_fault(self, lines: list[str]) -> str | None:
        """Returns why the lines are not one row of CSV, by its letter; None if they are.

        In the wild a quote within a field often stands alone, which is read as it is; but a field
        of several lines that ends so was never meant to be one.
        """
        try:
            list(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            return str(error)
        return None


def _delimiter(first_line: str) -> str:
    """Returns what separates the fields of a CSV file: where commas do not, what else is there."""
    if "," not in first_line:
        for delimiter in DELIMITERS:
            if delimiter in first_line:
                return delimiter
    return ","


def _shown(line: str) -> str:
    return excerpt(line.rstrip("\r\n")[:SHOWN_CHARACTERS])


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

    def give_back(self, kept: int) -> tuple[str, int]:
        """Returns the first line taken and its number; those after `kept` will be read again."""
        first, others = self.taken[0], self.taken[kept:]
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
