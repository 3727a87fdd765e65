"""Which rows of which shards make each train shard."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from pipeline.config import PackConfig
from schemas.columns import signal_fields
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout
from schemas.storage import exists, open_read


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of rows of one shard of pairs, as it goes into a train shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainShardPlan:
    """What a train shard is made of."""

    shard: int
    pieces: tuple[Piece, ...]
    has_levels: bool
    signals: tuple[str, ...] = ()
    """Columns of signals that the scored shards have."""
    is_recaptioned: bool = False
    """Whether captions, scores and levels are those of the recaption stage."""

    @property
    def samples(self) -> int:
        """How many samples it will hold."""
        return sum(piece.stop - piece.start for piece in self.pieces)


def plan_from_counts(
    layout: DatasetLayout,
    counts: Iterable[tuple[int, int]],
    config: PackConfig,
    has_levels: bool,
    is_recaptioned: bool = False,
) -> list[TrainShardPlan]:
    """Returns what each train shard is made of: all rows, in the order of shards and keys.

    Args:
        counts: each shard with its rows.
    """
    room, number = config.samples_per_shard, 0
    plans: list[TrainShardPlan] = []
    pieces: list[Piece] = []
    ordered = sorted(counts)
    signals = _signals_of(layout, ordered[0][0]) if has_levels and ordered else ()
    kind = TrainShardPlan(
        shard=0, pieces=(), has_levels=has_levels, signals=signals, is_recaptioned=is_recaptioned
    )
    for shard, rows in ordered:
        start = 0
        while start < rows:
            stop = min(rows, start + room)
            pieces.append(Piece(shard, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                plans.append(replace(kind, shard=number, pieces=tuple(pieces)))
                room, number, pieces = config.samples_per_shard, number + 1, []
    last = replace(kind, shard=number, pieces=tuple(pieces))
    return [*plans, last] if pieces else plans


def _signals_of(layout: DatasetLayout, shard: int) -> tuple[str, ...]:
    """Returns the signals of a scored shard: all shards have the same."""
    path = layout.scored(shard)
    if not exists(path):
        return ()
    with open_read(path) as file:
        return tuple(field.name for field in signal_fields(pq.read_schema(file)))


def rows_path(layout: DatasetLayout, shard: int, plan: TrainShardPlan) -> str:
    """Returns the path of the table whose rows are packed."""
    if plan.is_recaptioned:
        return layout.recaptioned(shard)
    return layout.levelled(shard) if plan.has_levels else layout.fetched(shard, "parquet")


def count_rows(shard: int, layout: DatasetLayout, has_levels: bool) -> tuple[int, int]:
    """Returns a shard with the number of its rows that are to be packed.

    Raises:
        DatasetError: if the stage before has not made them.
    """
    path = layout.levelled(shard) if has_levels else layout.fetched(shard, "parquet")
    try:
        with open_read(path) as file:
            return shard, int(pq.read_metadata(file).num_rows)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: run the stage that makes it first") from error
