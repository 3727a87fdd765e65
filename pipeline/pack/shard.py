"""A train shard is made of ranges of fetched shards, in one pass, image by image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import PackConfig
from pipeline.dataset.captions import chosen_captions
from pipeline.dataset.commits import deciding_settings, is_committed, stage_fingerprint
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.tars import read_members
from pipeline.dataset.train_shards import (
    MEMBERS_VERSION,
    PackedSample,
    ScoreAndLevel,
    write_train_shard,
)
from pipeline.dataset.worktimes import timed
from pipeline.pack.plan import Piece, TrainShardPlan, rows_path
from pipeline.pack.recaptions import made_fields, with_recaptions
from schemas.columns import (
    SIGNAL_FIELD,
    check_schema,
    file_metadata,
    kept_fields,
    read_table,
    records_from_table,
    signal_fields,
)
from schemas.errors import DatasetError
from schemas.records import (
    FETCHED_SCHEMA,
    LEVELLED_SCHEMA,
    RECAPTIONED_SCHEMA,
    SCORED_SCHEMA,
    StoredSample,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    committed_fingerprint,
    open_read,
    remove,
)


def pack_shard(
    layout: DatasetLayout, plan: TrainShardPlan, config: PackConfig
) -> tuple[int, int, int]:
    """Writes a train shard, unless that is done already; returns (number, samples, tar bytes)."""
    marker = layout.train(plan.shard, "parquet")
    fingerprint = _fingerprint(layout, plan, config)
    if not is_committed(marker, fingerprint):
        remove(marker)
        with (
            timed(layout, Stage.PACK, "pack") as work,
            ShardProgress(layout, Stage.PACK, plan.shard, plan.samples) as progress,
        ):
            work.rows = plan.samples
            _write_shard(layout, plan, fingerprint, progress)
    with open_read(marker) as file:
        tar_bytes = file_metadata(pq.read_schema(file))["tar_bytes"]
    return plan.shard, plan.samples, int(tar_bytes)


def _fingerprint(layout: DatasetLayout, plan: TrainShardPlan, config: PackConfig) -> str:
    upstream = []
    for piece in plan.pieces:
        paths = [layout.fetched(piece.shard, "_stats.json")]
        if plan.has_levels:
            paths.append(rows_path(layout, piece.shard, plan))
        prints = [committed_fingerprint(path) for path in paths]
        if None in prints:
            missing = paths[prints.index(None)]
            raise DatasetError(f"{missing} is missing: run the stage that makes it first")
        upstream.append(f"{piece.shard} {piece.start} {piece.stop} {' '.join(map(str, prints))}")
    settings = {**deciding_settings(config), "members": MEMBERS_VERSION}
    if plan.signals:
        fields = [_signal_fields(layout, piece.shard, plan.signals) for piece in plan.pieces]
        settings["signals"] = [
            field.metadata[SIGNAL_FIELD].decode() for piece in fields for field in piece
        ]
    return stage_fingerprint(Stage.PACK, settings, upstream)


def _write_shard(
    layout: DatasetLayout, plan: TrainShardPlan, fingerprint: str, progress: ShardProgress
) -> None:
    samples = (packed for piece in plan.pieces for packed in _samples_of(layout, piece, plan))
    kept = _kept_fields(layout, plan)
    write_train_shard(
        layout, plan.shard, samples, fingerprint, lambda n: progress.update(n, 0), kept
    )


def _kept_fields(layout: DatasetLayout, plan: TrainShardPlan) -> list[pa.Field]:
    """Returns the columns of the input's own: the same in all shards of a dataset."""
    first = plan.pieces[0].shard
    with open_read(layout.fetched(first, "parquet")) as file:
        kept = kept_fields(pq.read_schema(file))
    if plan.signals:
        kept += _signal_fields(layout, first, plan.signals)
    return [*kept, *made_fields(layout, first)] if plan.is_recaptioned else kept


def _signal_fields(layout: DatasetLayout, shard: int, signals: Sequence[str]) -> list[pa.Field]:
    """Returns the fields of a scored shard's signals.

    Raises:
        DatasetError: if it has others than the first shard of the dataset has.
    """
    with open_read(layout.scored(shard)) as file:
        fields = signal_fields(pq.read_schema(file))
    found = [field.name for field in fields]
    if found != list(signals):
        raise DatasetError(
            f"{layout.scored(shard)} has the signals {', '.join(found) or 'none'}, the first shard "
            f"has {', '.join(signals)}: run `score` to its end first"
        )
    return fields


def _samples_of(
    layout: DatasetLayout, piece: Piece, plan: TrainShardPlan
) -> Iterator[PackedSample]:
    """Yields the samples of a piece with their images, in the order of their keys."""
    with open_read(layout.fetched(piece.shard, "parquet")) as file:
        fetched = read_table(file, FETCHED_SCHEMA).drop_columns("thumbnail")
    if plan.has_levels:
        levels = _read_levels(layout, piece, plan)
        fetched = _with_chosen_captions(layout, piece.shard, fetched)
    else:
        fetched = fetched.slice(piece.start, piece.stop - piece.start)
        given = fetched["given_level"].to_pylist()
        levels = {
            key: (None, level) for key, level in zip(fetched["key"].to_pylist(), given, strict=True)
        }
    is_wanted = pc.is_in(fetched["key"], value_set=pa.array(list(levels), pa.string()))
    rows = records_from_table(fetched.filter(is_wanted), StoredSample)
    rows = _with_signals(layout, piece.shard, plan, rows)
    if plan.is_recaptioned:
        rows = with_recaptions(layout, piece.shard, rows)
    samples = {sample.key: sample for sample in rows}
    if len(samples) != len(levels):
        raise DatasetError(
            f"{rows_path(layout, piece.shard, plan)} has {len(levels) - len(samples)} keys that "
            "are not among the fetched: run the stages after fetch again"
        )
    names = [name for sample in samples.values() for name in sample.image_members]
    images = read_members(layout, piece.shard, names)
    for key, sample in samples.items():
        yield sample, levels[key], tuple(islice(images, len(sample.image_members)))


def _with_signals(
    layout: DatasetLayout, shard: int, plan: TrainShardPlan, rows: list[StoredSample]
) -> list[StoredSample]:
    """Returns the samples with their signals among the columns that go along."""
    if not plan.signals or not rows:
        return rows
    names = list(plan.signals)
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", *names])
    places = pc.index_in(pa.array([row.key for row in rows]), scored["key"].combine_chunks())
    values = scored.select(names).take(places).to_pylist()
    return [
        replace(row, kept={**(row.kept or {}), **more})
        for row, more in zip(rows, values, strict=True)
    ]


def _with_chosen_captions(layout: DatasetLayout, shard: int, fetched: pa.Table) -> pa.Table:
    """Returns the fetched rows, those of several captions with the one that scored best."""
    if fetched["captions"].null_count == fetched.num_rows:
        return fetched
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "caption_index"])
    places = pc.index_in(fetched["key"], value_set=scored["key"].combine_chunks())
    index = pc.fill_null(scored["caption_index"].take(places), 0).to_pylist()
    captions = pa.array(chosen_captions(fetched, index), pa.string())
    column = fetched.schema.get_field_index("caption")
    return fetched.set_column(column, fetched.schema.field(column), captions)


def _read_levels(
    layout: DatasetLayout, piece: Piece, plan: TrainShardPlan
) -> dict[str, ScoreAndLevel]:
    path = rows_path(layout, piece.shard, plan)
    schema = RECAPTIONED_SCHEMA if plan.is_recaptioned else LEVELLED_SCHEMA
    columns = ["key", "clip_score", "alignment_level"]
    with open_read(path) as file:
        parquet = pq.ParquetFile(file)
        check_schema(parquet.schema_arrow, schema, path)
        table = parquet.read(columns=columns).slice(piece.start, piece.stop - piece.start)
    values = [table[name].to_pylist() for name in columns]
    return {key: (score, level) for key, score, level in zip(*values, strict=True)}
