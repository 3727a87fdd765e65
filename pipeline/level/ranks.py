"""Ranks of all pairs by several signals, and their mean: what `levels.by rank_mean:…` ranks by.

A shard's positions are spilled, parted by cuts that are the same for all shards. Each part of all
shards is sorted by itself, and the ranks go back to where the shards find theirs. A shard's tables
are read twice, for the cuts and to be spilled; what is spilled says which pairs they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.progress import begin_step, end_piece
from pipeline.dataset.worktimes import timed
from pipeline.level.signals import may_stay, refuse_nan, signal_rows
from schemas.columns import read_table
from schemas.records import UNIQUE_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, exists, open_read, read_range, remove_folder
from scoring.config import LevelConfig
from scoring.levels.ranks import (
    POSITION,
    Positions,
    RankMean,
    cuts_from,
    even_sample,
    parse_rank_mean,
    parts_of,
    positions_of,
    ranks_within,
)

PAIRS_AT_ONCE = 1 << 22
"""Pairs that are sorted at once, about: 50 MB of positions and 100 MB while they are sorted."""

SAMPLED_SHARDS = 1024
SAMPLED_PAIRS = 64
"""Of each of these shards, for the cuts."""

RANK = np.dtype("<i8")
OFFSET = np.dtype("<i8")
ROW = np.dtype("<u4")
PART = np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What there is to rank."""

    fingerprint: str
    """Of the edges that come of it."""
    shards: tuple[int, ...]
    """Ascending."""
    is_done: bool
    """Whether the levels stand, so that nothing is to be ranked."""


@dataclass(frozen=True, slots=True)
class ShardSample:
    """What the cuts are found from."""

    shard: int
    count: int
    """Pairs of the shard that have ranks."""
    positions: tuple[Positions, ...]
    """A few of each signal."""


@dataclass(frozen=True, slots=True)
class RankCuts:
    """Where the pairs are parted, the same in every shard."""

    count: int
    """Pairs that have ranks."""
    parts: int
    """Of each signal."""
    cuts: tuple[Positions, ...]
    """Of each signal, one fewer than parts."""


@dataclass(frozen=True, slots=True)
class _Staying:
    """The pairs of a shard that have ranks."""

    total: int
    """Pairs of the shard, those without ranks among them."""
    rows: NDArray[np.intp]
    positions: tuple[Positions, ...]
    """Of each signal."""


def rank_folder(layout: DatasetLayout) -> str:
    """Returns the folder of the files that the ranking leaves behind while it runs."""
    return f"{layout.run}/level"


def sample_shard(
    shard: int, layout: DatasetLayout, config: LevelConfig, plan: RankPlan
) -> ShardSample:
    """Returns how many pairs of a shard have ranks, and where some of them stand."""
    if plan.is_done:
        return ShardSample(shard, 0, ())
    with timed(layout, Stage.LEVEL, "sample") as work:
        staying = _read_staying(layout, shard, config)
        work.rows = staying.total
    step = max(1, len(plan.shards) // SAMPLED_SHARDS)
    size = 0 if plan.shards.index(shard) % step else SAMPLED_PAIRS
    sample = tuple(even_sample(positions, size) for positions in staying.positions)
    return ShardSample(shard, len(staying.rows), sample)


def cut_ranks(
    samples: list[ShardSample], layout: DatasetLayout, config: LevelConfig, plan: RankPlan
) -> RankCuts:
    """Returns the cuts: no matter where they fall, the ranks are the same."""
    count = sum(sample.count for sample in samples)
    if plan.is_done or not count:
        return RankCuts(count, 0, ())
    parts = -(-count // PAIRS_AT_ONCE)
    ordered = sorted(samples, key=lambda sample: sample.shard)
    cuts = tuple(
        cuts_from(np.concatenate([sample.positions[signal] for sample in ordered]), parts)
        for signal in range(len(_mean(config).names))
    )
    parts = 1 + min(len(of_signal) for of_signal in cuts)
    begin_step(layout, Stage.LEVEL, "rank", parts * len(cuts))
    return RankCuts(count, parts, tuple(of_signal[: parts - 1] for of_signal in cuts))


def spill_shard(
    shard: int, layout: DatasetLayout, config: LevelConfig, plan: RankPlan, cuts: RankCuts
) -> int:
    """Returns the shard once its positions lie parted by the cuts, signal by signal."""
    path = _spill_path(layout, plan, shard)
    if not plan.is_done and cuts.count and not exists(path):
        with timed(layout, Stage.LEVEL, "spill") as work:
            staying = _read_staying(layout, shard, config)
            work.rows = staying.total
            pieces: list[NDArray[Any]] = []
            found = [np.concatenate([[staying.total], staying.rows]).astype(ROW)]
            for positions, of_signal in zip(staying.positions, cuts.cuts, strict=True):
                part = parts_of(positions, of_signal)
                pieces += [positions[part == number] for number in range(cuts.parts)]
                found.append(part.astype(PART))
            _write_pieces(path, [*pieces, *found])
    return shard


def rank_tasks(cuts: RankCuts) -> Iterator[tuple[int, int]]:
    """Yields every signal with every part of it."""
    for signal in range(len(cuts.cuts)):
        for part in range(cuts.parts):
            yield signal, part


def rank_task(
    task: tuple[int, int], layout: DatasetLayout, plan: RankPlan, cuts: RankCuts
) -> tuple[int, int]:
    """Returns the task once the ranks of all pairs in a part of a signal's order are saved."""
    path = _ranks_path(layout, plan, task)
    if not exists(path):
        with timed(layout, Stage.LEVEL, "rank") as work:
            work.rows = _rank_and_commit(path, task, layout, plan, cuts)
    end_piece(layout, Stage.LEVEL, "rank", f"{task[0]}-{task[1]}")
    return task


def average_shard(
    shard: int, layout: DatasetLayout, config: LevelConfig, plan: RankPlan, cuts: RankCuts
) -> int:
    """Returns the shard once the means of its pairs' ranks are saved; 0 for pairs without."""
    path = _values_path(layout, shard, plan.fingerprint)
    if not plan.is_done and not exists(path):
        with timed(layout, Stage.LEVEL, "average") as work:
            rows, ranks, total = _ranks_of(layout, shard, plan, cuts)
            values = np.zeros(total, np.float32)
            if len(rows):
                values[rows] = _mean(config).values(ranks, cuts.count)
            _write_pieces(path, [values])
            work.rows = total
    return shard


def read_values(layout: DatasetLayout, shard: int, fingerprint: str) -> NDArray[np.float32]:
    """Returns the means of the ranks of a shard's unique pairs, in their order, (n,)."""
    path = _values_path(layout, shard, fingerprint)
    offsets = _offsets(path, 1)
    return _piece(path, 1, offsets, 0, np.dtype("<f4"))


def remove_rank_files(levelled: int, layout: DatasetLayout) -> int:
    """Returns the number of shards, once the files of the ranking are gone."""
    remove_folder(rank_folder(layout))
    return levelled


def _mean(config: LevelConfig) -> RankMean:
    mean = parse_rank_mean(config.by)
    assert mean is not None
    return mean


def _read_staying(layout: DatasetLayout, shard: int, config: LevelConfig) -> _Staying:
    """Returns the pairs of a shard that have ranks.

    Raises:
        DatasetError: if one of them has no value.
    """
    with open_read(layout.unique(shard)) as file:
        table = read_table(file, UNIQUE_SCHEMA, ["key", "clip_score"])
    keys = table["key"].combine_chunks()
    score = table["clip_score"].to_numpy().astype(np.float32, copy=False)
    columns = signal_rows(layout, shard, config, keys, score)
    is_to_keep, is_high_enough = may_stay(columns, config)
    rows = np.flatnonzero(is_to_keep & is_high_enough)
    hashes = key_hashes(keys.take(rows))
    positions = []
    for name in _mean(config).names:
        value = columns[name].to_numpy().astype(np.float32, copy=False)[rows]
        refuse_nan(layout.scored(shard), name, value)
        positions.append(positions_of(value, hashes))
    return _Staying(len(table), rows, tuple(positions))


def _rank_and_commit(
    path: str, task: tuple[int, int], layout: DatasetLayout, plan: RankPlan, cuts: RankCuts
) -> int:
    """Ranks the pairs in a part of a signal's order and saves it; returns how many they are."""
    signal, part = task
    pieces = _spilled_pieces(cuts)
    first, own = signal * cuts.parts, signal * cuts.parts + part
    below = 0
    found: list[Positions] = []
    for shard in plan.shards:
        spilled = _spill_path(layout, plan, shard)
        offsets = _offsets(spilled, pieces)
        below += int(offsets[own] - offsets[first]) // POSITION.itemsize
        found.append(_piece(spilled, pieces, offsets, own, POSITION))
    ranks = ranks_within(np.concatenate(found)) + below
    ends = np.cumsum([len(positions) for positions in found])
    _write_pieces(path, np.split(ranks.astype(RANK), ends[:-1]))
    return len(ranks)


def _spilled_pieces(cuts: RankCuts) -> int:
    """Returns how many pieces a shard spills: positions by signal and part, rows, parts."""
    return len(cuts.cuts) * (cuts.parts + 1) + 1


def _ranks_of(
    layout: DatasetLayout, shard: int, plan: RankPlan, cuts: RankCuts
) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], int]:
    """Returns which rows of a shard have ranks, (n,), these, (signals, n), and all its rows."""
    if not cuts.count:  # nothing was spilled
        with open_read(layout.unique(shard)) as file:
            return np.empty(0, ROW), np.empty((0, 0), np.int64), pq.read_metadata(file).num_rows
    pieces, behind = _spilled_pieces(cuts), len(cuts.cuts) * cuts.parts
    spilled = _spill_path(layout, plan, shard)
    offsets = _offsets(spilled, pieces)
    told = _piece(spilled, pieces, offsets, behind, ROW)
    place, count = plan.shards.index(shard), len(plan.shards)
    ranks = np.empty((len(cuts.cuts), len(told) - 1), np.int64)
    for signal in range(len(cuts.cuts)):
        part_of = _piece(spilled, pieces, offsets, behind + 1 + signal, PART)
        for part in range(cuts.parts):
            path = _ranks_path(layout, plan, (signal, part))
            own = _offsets(path, count)
            ranks[signal, part_of == part] = _piece(path, count, own, place, RANK)
    return told[1:], ranks, int(told[0])


def _write_pieces(path: str, pieces: Sequence[NDArray[Any]]) -> None:
    """Commits arrays one after the other, behind the places at which they begin and end."""
    sizes = [piece.nbytes for piece in pieces]
    with commit_file(path) as file:
        file.write(np.cumsum([0, *sizes], dtype=OFFSET).tobytes())
        for piece in pieces:
            file.write(piece.tobytes())


def _offsets(path: str, count: int) -> NDArray[np.int64]:
    """Returns at which bytes behind these each of `count` pieces begins, and the last ends."""
    length = OFFSET.itemsize * (count + 1)
    return np.frombuffer(read_range(path, 0, length), OFFSET)


def _piece(
    path: str, count: int, offsets: NDArray[np.int64], number: int, kind: np.dtype[Any]
) -> NDArray[Any]:
    """Returns one of the pieces of a file."""
    start, end = (int(offsets[number]), int(offsets[number + 1]))
    if start == end:
        return np.empty(0, kind)
    header = OFFSET.itemsize * (count + 1)
    return np.frombuffer(read_range(path, header + start, end - start), kind)


def _spill_path(layout: DatasetLayout, plan: RankPlan, shard: int) -> str:
    return f"{rank_folder(layout)}/{plan.fingerprint}/parted/{shard:05d}.bin"


def _ranks_path(layout: DatasetLayout, plan: RankPlan, task: tuple[int, int]) -> str:
    return f"{rank_folder(layout)}/{plan.fingerprint}/ranks/{task[0]:02d}-{task[1]:05d}.bin"


def _values_path(layout: DatasetLayout, shard: int, fingerprint: str) -> str:
    return f"{rank_folder(layout)}/{fingerprint}/values/{shard:05d}.bin"
