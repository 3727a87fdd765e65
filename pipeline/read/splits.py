"""Input files in parts that are read side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.read.inputs import InputFile, InputFormat

SPLIT_BYTES = 64 * 1024 * 1024
"""Length of the byte ranges that line-based files are cut into, to be read side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSplit:
    """A part of an input file that is read by one worker."""

    number: int
    file: InputFile
    start: int
    """First row group of a Parquet file, first byte of a file of lines, otherwise 0."""
    stop: int
    """After the last one."""
    rows: int
    """How many rows it holds, 0 if that is not known beforehand."""


def plan_splits(files: Sequence[InputFile]) -> list[InputSplit]:
    """Returns the parts that the files are read in."""
    splits: list[InputSplit] = []
    for file in files:
        for start, stop, rows in _parts(file):
            splits.append(
                InputSplit(number=len(splits), file=file, start=start, stop=stop, rows=rows)
            )
    return splits


def _parts(file: InputFile) -> list[tuple[int, int, int]]:
    """Returns (start, stop, rows) of the parts of a file."""
    if file.format is InputFormat.PARQUET:
        return _row_group_parts(file.row_groups)
    lines = (InputFormat.TSV, InputFormat.JSON_LINES, InputFormat.URL_LIST)
    if file.format in lines and file.can_be_split:
        size = file.estimated_bytes
        starts = range(0, max(size, 1), SPLIT_BYTES)
        return [(start, min(start + SPLIT_BYTES, size), 0) for start in starts]
    return [(0, 1, 0)]


def _row_group_parts(row_groups: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    parts: list[tuple[int, int, int]] = []
    start = rows = size = 0
    for group, (group_rows, group_bytes) in enumerate(row_groups):
        rows, size = rows + group_rows, size + group_bytes
        if size >= SPLIT_BYTES or group == len(row_groups) - 1:
            parts.append((start, group + 1, rows))
            start, rows, size = group + 1, 0, 0
    return parts
