"""What is in the train shards: levels, scores, sizes and examples, in one pass over the tables."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.columns import check_schema
from schemas.many_files import map_files
from schemas.records import TRAIN_SCHEMA
from schemas.storage import is_local, open_read

SCORE_CELLS = 2000
"""Cells of the histogram of scores over [-1, 1]."""

COLUMNS = (
    "key",
    "caption",
    "conversations",
    "clip_score",
    "alignment_level",
    "width",
    "height",
    "image_offset",
    "image_bytes",
)


@dataclass(slots=True)
class LevelContents:
    """The samples of one level."""

    level: int
    count: int = 0
    lowest_score: float | None = None
    highest_score: float | None = None
    score_sum: float = 0.0

    @property
    def mean_score(self) -> float | None:
        """Mean of the scores; None if there are none."""
        return self.score_sum / self.count if self.count else None

    def add(self, scores: NDArray[np.float64]) -> None:
        """Takes the scores of some of the level's samples."""
        if not len(scores):
            return
        self.count += len(scores)
        self.score_sum += float(scores.sum())
        low, high = float(scores.min()), float(scores.max())
        self.lowest_score = low if self.lowest_score is None else min(low, self.lowest_score)
        self.highest_score = high if self.highest_score is None else max(high, self.highest_score)

    def as_dict(self) -> dict[str, Any]:
        """Returns what the manifest says of the level."""
        return {
            "level": self.level,
            "count": self.count,
            "lowest_score": self.lowest_score,
            "highest_score": self.highest_score,
        }


@dataclass(frozen=True, slots=True)
class Example:
    """A sample to show."""

    path: str
    """Of the table that it stands in; the tar lies beside it."""
    row: dict[str, Any]


@dataclass(slots=True)
class Contents:
    """What was seen in the tables of a dataset."""

    levels: dict[int, LevelContents] = field(default_factory=dict)
    score_counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(SCORE_CELLS, np.int64))
    """(SCORE_CELLS,) samples by score, from -1 to 1."""
    sizes: list[tuple[str, int]] = field(default_factory=list)
    """Longest side of the stored image, as a range in pixels, and how many have it."""
    texts_alone: int = 0
    samples: int = 0
    examples: dict[int | None, list[Example]] = field(default_factory=dict)
    """Of each level, or of None where there are no levels: those with the smallest keys, which
    is a random choice that is always the same. In the order of their scores."""
    recaptioned: list[Example] = field(default_factory=list)
    """Of samples that a model wrote a caption for, chosen likewise."""


Heaps = dict[int | None, list[tuple[int, int, Example]]]
"""Of each level, examples behind their key, negative, and their row among all."""

SIZE_EDGES = (64, 128, 192, 256, 320, 384, 512, 768, 1024)


def read_contents(paths: Iterable[str], num_levels: int | None, per_level: int) -> Contents:
    """Returns what is in train tables.

    Args:
        num_levels: levels without samples are counted too; None if there are none.
        per_level: how many examples to keep of each level.
    """
    contents = Contents()
    if num_levels is not None:
        contents.levels = {level: LevelContents(level) for level in range(1, num_levels + 1)}
    size_counts = np.zeros(len(SIZE_EDGES) + 1, np.int64)
    heaps: Heaps = {}
    for path, tables in map_files(_tables, paths):
        for table in tables:
            _count_scores(contents, table)
            size_counts += _count_sizes(contents, table)
            _keep_examples(heaps, path, table, per_level, contents.samples)
            contents.samples += table.num_rows
    contents.sizes = _named_sizes(size_counts)
    for level in sorted(heaps, key=lambda level: level or 0):
        found = sorted(heaps[level], key=lambda item: (-item[0], item[1]))
        examples = [example for _, _, example in found]
        examples.sort(key=lambda example: example.row["clip_score"] or 0.0)
        contents.examples[level] = examples
    contents.levels = dict(sorted(contents.levels.items()))
    return contents


def _tables(path: str) -> tuple[str, Iterable[pa.Table]]:
    """Returns a path with the tables in it, read whole from a store and as it comes from a disk."""
    tables = _read_tables(path)
    return path, tables if is_local(path) else list(tables)


def _read_tables(path: str) -> Iterator[pa.Table]:
    with open_read(path) as file:
        parquet = pq.ParquetFile(file)
        check_schema(parquet.schema_arrow, TRAIN_SCHEMA, path)
        for batch in parquet.iter_batches(65_536, columns=list(COLUMNS), use_threads=False):
            yield pa.Table.from_batches([batch])


def _count_scores(contents: Contents, table: pa.Table) -> None:
    is_scored = np.asarray(table["clip_score"].is_valid())
    scores = np.asarray(table["clip_score"].to_numpy(), np.float64)[is_scored]
    cells = ((scores + 1.0) / 2.0 * SCORE_CELLS).astype(np.int64).clip(0, SCORE_CELLS - 1)
    contents.score_counts += np.bincount(cells, minlength=SCORE_CELLS)
    levels = np.asarray(table["alignment_level"].fill_null(0).to_numpy())[is_scored]
    for level in np.unique(levels[levels > 0]):
        number = int(level)
        known = contents.levels.setdefault(number, LevelContents(number))
        known.add(scores[levels == level])


def _count_sizes(contents: Contents, table: pa.Table) -> NDArray[np.int64]:
    has_image = np.asarray(table["image_bytes"].is_valid())
    contents.texts_alone += int((~has_image).sum())
    width = np.asarray(table["width"].fill_null(0).to_numpy())[has_image]
    height = np.asarray(table["height"].fill_null(0).to_numpy())[has_image]
    cells = np.searchsorted(SIZE_EDGES, np.maximum(width, height), side="left")
    return np.bincount(cells, minlength=len(SIZE_EDGES) + 1).astype(np.int64)


def _named_sizes(counts: NDArray[np.int64]) -> list[tuple[str, int]]:
    lows = (1, *(edge + 1 for edge in SIZE_EDGES))
    names = [f"{low} to {edge}" for low, edge in zip(lows, SIZE_EDGES, strict=False)]
    names.append(f"over {SIZE_EDGES[-1]}")
    return [(name, int(count)) for name, count in zip(names, counts, strict=True) if count]


def _keep_examples(heaps: Heaps, path: str, table: pa.Table, wanted: int, first_row: int) -> None:
    keys = table["key"].to_pylist()
    levels = table["alignment_level"].to_pylist()
    for row, (key, level) in enumerate(zip(keys, levels, strict=True)):
        heap = heaps.setdefault(level, [])
        number = -int(key, 16)
        if len(heap) >= wanted and not (heap and number > heap[0][0]):
            continue
        # Datasets that were joined may hold a key twice: the row's number tells which is which.
        item = (number, first_row + row, Example(path, table.slice(row, 1).to_pylist()[0]))
        if len(heap) < wanted:
            heapq.heappush(heap, item)
        else:
            heapq.heapreplace(heap, item)
