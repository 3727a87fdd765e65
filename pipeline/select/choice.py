"""Which samples of finished datasets a new one takes, and their levels there."""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.conditions import Condition, ConditionRunner
from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.manifests import manifest_sha256, read_manifest
from pipeline.dataset.train_samples import TarReaders, fetched_part, read_rows
from pipeline.dataset.train_shards import PackedSample
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from scoring.levels.edges import (
    EdgeSearch,
    LevelEdges,
    count_cells,
    levels_from_edges,
    merge_histograms,
    refine,
)

SCORE = "clip_score"
LEVEL = "alignment_level"
ORIGINAL_SCORE, ORIGINAL_LEVEL = "original_score", "original_level"
"""Of the caption before a model wrote another one; clip_score decides such levels."""

Watch = Callable[[str, Sequence[Any]], Iterable[Any]]
"""Passes the shards of a pass on and shows how many of them went by."""


@dataclass(slots=True)
class Source:
    """A finished dataset that samples are taken from."""

    layout: DatasetLayout
    manifest: Manifest
    manifest_sha256: str
    is_taken: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """Shard to one bit for each of its rows, packed: 1 for those that are taken."""

    @classmethod
    def at(cls, folder: str) -> "Source":
        """Returns the dataset in a folder, nothing of it taken.

        Raises:
            DatasetError: if there is none, or it is not finished.
        """
        layout = DatasetLayout(folder)
        return cls(layout, read_manifest(layout), manifest_sha256(layout))

    @property
    def shards(self) -> list[int]:
        """Numbers of the train shards, in their order."""
        return [int(entry.name) for entry in self.manifest.shards]

    @property
    def taken(self) -> int:
        """How many samples are taken."""
        return sum(int(np.bitwise_count(bits).sum()) for bits in self.is_taken.values())

    def rows(self, shard: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yields the rows of a shard that are taken, some at a time."""
        start = 0
        for table in read_rows(self.layout, shard, columns):
            mask = np.unpackbits(self.is_taken[shard], count=start + len(table))[start:]
            start += len(table)
            yield table.filter(pa.array(mask.astype(bool)))


def choose(source: Source, condition: Condition | None, watch: Watch) -> None:
    """Takes the samples that fulfil a condition, or all.

    Raises:
        ConfigError: if the condition cannot be computed for a sample.
        DatasetError: if a shard does not hold as many rows as the manifest says.
    """
    columns = ["key"] if condition is None else list(condition.columns or ("key",))
    with nullcontext() if condition is None else closing(ConditionRunner(condition)) as runner:
        _choose(source, runner, columns, watch)


def _choose(
    source: Source, runner: ConditionRunner | None, columns: list[str], watch: Watch
) -> None:
    for entry in watch(f"Choosing from {source.layout.root}", source.manifest.shards):
        shard = int(entry.name)
        found = [
            np.ones(len(table), bool) if runner is None else runner.matches(table)
            for table in read_rows(source.layout, shard, columns)
        ]
        mask = np.concatenate([np.empty(0, bool), *found])
        if len(mask) != entry.samples:
            raise DatasetError(
                f"{source.layout.train(shard, 'parquet')} has {len(mask)} rows, the manifest says "
                f"{entry.samples}: `aligngpt-curate verify {source.layout.root}` says more"
            )
        source.is_taken[shard] = np.packbits(mask)


def drop_repeated(sources: Sequence[Source], watch: Watch) -> int:
    """Leaves out samples whose key an earlier dataset has; returns how many.

    Raises:
        DatasetError: if a dataset is not in the order of its keys.
    """
    if len(sources) < 2:
        return 0
    dropped, last = 0, ""
    shards = iter(watch("Looking for repeated keys", [None] * sum(len(s.shards) for s in sources)))
    places = [_keys(number, source, shards) for number, source in enumerate(sources)]
    for key, number, shard, row in heapq.merge(*places):
        if key == last:
            bits = sources[number].is_taken[shard]
            bits[row // 8] &= ~np.uint8(128 >> row % 8)
            dropped += 1
        last = key
    for _ in shards:
        pass
    return dropped


def _keys(
    number: int, source: Source, passed: Iterator[Any]
) -> Iterator[tuple[str, int, int, int]]:
    """Yields key, number of the dataset, shard and row of its taken samples, in their order."""
    last = ""
    for shard in source.shards:
        is_taken, row = np.unpackbits(source.is_taken[shard]).astype(bool), 0
        for table in read_rows(source.layout, shard, ["key"]):
            for key in table["key"].to_pylist():
                if key <= last:
                    raise DatasetError(
                        f"{source.layout.train(shard, 'parquet')} is not in the order of its keys "
                        f"at {key}: pack the dataset anew (--redo pack)"
                    )
                last = key
                if is_taken[row]:
                    yield key, number, shard, row
                row += 1
        next(passed, None)


def cut_levels(
    sources: Sequence[Source], num_levels: int, watch: Watch, by: str = SCORE
) -> LevelEdges:
    """Returns the edges of equally large levels of what is taken, found pass by pass.

    Samples without a level, such as those of a dataset that was not scored, are left out.

    Args:
        by: the column whose ranks decide: clip_score or a signal.

    Raises:
        ConfigError: if no sample has a level, or that column says nothing of one that has.
    """
    search = EdgeSearch(num_levels)
    places = [(source, shard) for source in sources for shard in source.shards]
    while not search.is_done:
        title = f"Cutting levels, pass {search.passes_done + 1}"
        counts = (
            count_cells(search, *_values(table, by))
            for source, shard in watch(title, places)
            for table in source.rows(shard, ["key", LEVEL, by])
        )
        search = refine(search, merge_histograms(counts))
    if not search.total:
        raise ConfigError("--cut-levels needs scores, and these samples have none")
    return search.edges


def _values(
    table: pa.Table, by: str, level: str = LEVEL
) -> tuple[NDArray[np.float32], NDArray[np.uint64]]:
    """Returns what the rows with a level are ranked by and their hashes; both (n,)."""
    table = table.filter(table[level].is_valid())
    if len(table) and (by not in table.column_names or table[by].null_count):
        what = "a score" if by == SCORE else f"the signal {by}, by which the levels are cut,"
        raise ConfigError(
            f"levels cannot be cut anew: there are samples without {what} among those that are "
            f"taken: leave out --cut-levels, or add `{by} is not null` to --where"
        )
    values = table[by] if len(table) else pa.array([], pa.float32())
    hashes = key_hashes(table["key"].combine_chunks())
    return values.to_numpy().astype(np.float32, copy=False), hashes


@dataclass(frozen=True, slots=True)
class Taken:
    """A sample on its way into a new dataset."""

    key: str
    table: pa.Table
    """With its row."""
    row: int
    level: int | None
    tar: str


def taken_samples(
    sources: Sequence[Source], edges: LevelEdges | None, by: str = SCORE
) -> Iterator[Taken]:
    """Yields all that is taken, of several datasets in the order of the keys.

    Args:
        edges: of new levels, for samples that have one; None keeps those that they have.
        by: the column that the edges were cut by.
    """
    if len(sources) == 1:
        return _taken_of(sources[0], edges, by)
    streams = [_taken_of(source, edges, by) for source in sources]
    return heapq.merge(*streams, key=lambda sample: sample.key)


def _taken_of(source: Source, edges: LevelEdges | None, by: str) -> Iterator[Taken]:
    for shard in source.shards:
        tar = source.layout.train(shard, "tar")
        for table in source.rows(shard):
            if edges is not None:
                for level, value in ((LEVEL, by), (ORIGINAL_LEVEL, ORIGINAL_SCORE)):
                    if level in table.column_names:
                        table = _levelled_anew(table, level, value, edges)
            levels = table[LEVEL].to_pylist()
            for row, key in enumerate(table["key"].to_pylist()):
                yield Taken(key, table, row, levels[row], tar)


def _levelled_anew(table: pa.Table, level: str, by: str, edges: LevelEdges) -> pa.Table:
    """Returns rows with a column of levels by these edges; where there was no level there is none.

    A caption's level before a model wrote another one is compared with its level now, so that both
    must be by the same edges.
    """
    place = table.schema.get_field_index(level)
    anew = iter(levels_from_edges(*_values(table, by, level), edges).tolist())
    levels = [None if old is None else next(anew) for old in table[level].to_pylist()]
    field = table.schema.field(place)
    return table.set_column(place, field, pa.array(levels, field.type))


def packed(taken: Taken, readers: TarReaders) -> PackedSample:
    """Returns a sample with its images, score and level.

    Raises:
        DatasetError: if the tar does not hold its images.
    """
    row = taken.table.slice(taken.row, 1).to_pylist()[0]
    return fetched_part(row), (row["clip_score"], taken.level), readers.images(taken.tar, row)
