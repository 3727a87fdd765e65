"""A benchmark's questions, their pictures, and what was answered."""

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from schemas.errors import ConfigError

ROW_GROUPS_IN_MEMORY = 16
"""Of Parquet files with pictures; about 15 MB each as the benchmarks are published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Where a question's picture is: a file, base64 text, or a row of a Parquet file."""

    name: str
    """As answer files record it; questions about one picture share it."""
    path: str = ""
    """The file; of a Parquet file if `row` is set."""
    encoded: str = ""
    """Base64 of the file's bytes."""
    row: int = -1
    """Row of the Parquet file, from 0."""
    column: str = "image"
    """Column of the Parquet file: {bytes, path}, or a list of those."""

    def open(self) -> Image.Image:
        """Returns the picture in RGB as the published scripts see it: as stored, not upright.

        Raises:
            ConfigError: if it is not there or cannot be read.
        """
        try:
            source: Any = self.path if not (self.encoded or self.row >= 0) else self._bytes()
            with Image.open(source) as opened:
                has_palette = opened.mode == "P" and "transparency" in opened.info
                # The same colours, by a way on which Pillow has nothing to warn of.
                picture = (opened.convert("RGBA") if has_palette else opened).convert("RGB")
        except (OSError, SyntaxError, ValueError, binascii.Error) as error:
            raise ConfigError(f"the picture {self.name} cannot be read: {error}") from error
        picture.info = {}  # its orientation must not turn it later
        return picture

    def digest(self) -> str:
        """Returns the SHA-256 of the picture's file, 64 hex digits: the same under any name.

        Raises:
            ConfigError: if it is not there or cannot be read.
        """
        try:
            if self.encoded or self.row >= 0:
                return hashlib.sha256(self._bytes().getvalue()).hexdigest()
            with Path(self.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, binascii.Error) as error:
            raise ConfigError(f"the picture {self.name} cannot be read: {error}") from error

    def is_there(self) -> bool:
        """Returns whether the picture's file exists, without reading it."""
        return bool(self.encoded) or Path(self.path).is_file()

    def _bytes(self) -> io.BytesIO:
        if self.encoded:
            return io.BytesIO(base64.b64decode(self.encoded, validate=False))
        value = _parquet_cell(self.path, self.column, self.row)
        value = value[0] if isinstance(value, list) else value
        return io.BytesIO(value["bytes"])


def _parquet_cell(path: str, column: str, row: int) -> Any:
    """Returns one value of a Parquet file, its row group kept for the neighbours."""
    for group, (first, count) in enumerate(_row_groups(path)):
        if first <= row < first + count:
            return _row_group(path, column, group)[row - first].as_py()
    raise ConfigError(f"{path} has no row {row}")


@lru_cache(maxsize=256)
def _row_groups(path: str) -> list[tuple[int, int]]:
    """Returns first row and number of rows of each row group."""
    metadata = pq.read_metadata(path)
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return [(sum(counts[:group]), count) for group, count in enumerate(counts)]


@lru_cache(maxsize=ROW_GROUPS_IN_MEMORY)
def _row_group(path: str, column: str, group: int) -> Any:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a benchmark, ready to be asked."""

    question_id: int | str
    """As the benchmark's answer files write it."""
    prompt: str
    """What is asked, its suffix included, without system message and `<image>`."""
    picture: Picture | None = None
    """None for a question about no picture."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What scoring needs: labels, options, categories. Each benchmark knows its own."""
    recorded_prompt: str | None = None
    """The prompt as published answer files hold it, where that is another."""

    @property
    def prompt_in_answers(self) -> str:
        """The prompt as an answer file holds it."""
        return self.prompt if self.recorded_prompt is None else self.recorded_prompt


@dataclass(slots=True, kw_only=True)
class Answer:
    """A question and what was answered to it."""

    question: Question
    text: str | None
    """What the model said; None where the answer file has no row."""
    prompt: str | None = None
    """As the answer file holds it; None if it holds none."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The whole row of the answer file."""
    parsed: Any = None
    """What the benchmark's script makes of the text."""
    judged: list[Any] = field(default_factory=list)
    """What a judge gave it, one entry a run: as the benchmark's script stores it."""
    replies: list[str] = field(default_factory=list)
    """The judge's last reply of each run."""
    unparsed: int = 0
    """How many of the judge's runs gave no score that could be read, whatever the script stores."""
    score: float | None = None
    """Of this answer alone, from 0 to 1; None where there is nothing to compare with."""

    @property
    def unit(self) -> str:
        """What is drawn as one when scores are resampled: questions about one picture."""
        picture = self.question.picture
        return str(self.question.question_id) if picture is None else picture.name
