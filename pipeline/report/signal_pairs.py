"""The signals of some pairs of a dataset and of the same pairs exchanged, as scoring left them."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.captions import caption_choices
from pipeline.dataset.embeddings import embedding_array
from pipeline.report.pair_groups import (
    SCORE,
    chosen_tables,
    fetched_of,
    groups_of,
    levels_of,
)
from schemas.columns import (
    EXCHANGED_FIELD,
    check_schema,
    exchanged_fields,
    signal_fields,
)
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout, shard_number
from schemas.storage import open_read
from scoring.control import CONTROLLED_ROWS, EXCHANGES, exchange_captions, own_scores


@dataclass(frozen=True, slots=True)
class SignalPairs:
    """Pairs of a dataset, n of them, each held against EXCHANGES exchanged ones."""

    own: dict[str, NDArray[np.float32]]
    """Signal to its values, (n,), that of the score among them; NaN where there is none."""
    exchanged: dict[str, NDArray[np.float32]]
    """Signal to those of exchanged pairs, (n, EXCHANGES); NaN where there is none."""
    partner: NDArray[np.int64]
    """Whose caption each exchanged pair has: rows of these pairs, (n, EXCHANGES); -1 where that is
    not known, since pairs of the shard have been removed."""
    level: NDArray[np.int64]
    """(n,); 0 of pairs without one."""
    groups: dict[str, list[str]]
    """Kind to the group that each pair belongs to; empty for none."""


def read_signal_pairs(
    layout: DatasetLayout, each: Callable[[Sequence[str]], Iterable[str]] = iter
) -> SignalPairs | None:
    """Returns pairs of an even choice of shards; None where a dataset has no signals.

    Args:
        each: yields the tables that are read, whoever wants to know when.

    Raises:
        DatasetError: if a table is damaged.
    """
    wanted = chosen_tables(layout)
    if not wanted:
        return None
    with open_read(wanted[0]) as file:
        if not signal_fields(pq.read_schema(file)):
            return None
    parts = [_read_shard(layout, path) for path in each(wanted)]
    return _joined([part for part in parts if len(part.level)])


def _read_shard(layout: DatasetLayout, path: str) -> SignalPairs:
    """Returns the first pairs of a shard."""
    with open_read(path) as file, pq.ParquetFile(file) as parquet:
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        check_schema(schema, SCORED_SCHEMA, path)
        signals = [field.name for field in signal_fields(schema)]
        exchanged = exchanged_fields(schema)
        others = [field.name for field in exchanged.values()]
        names = ["key", "image_embedding", "text_embedding", *signals, *others]
        batches = parquet.iter_batches(CONTROLLED_ROWS, columns=names, use_threads=False)
        first = next(batches, None)
    table = schema.empty_table() if first is None else pa.Table.from_batches([first])
    fetched, languages = fetched_of(layout, shard_number(path))
    pairs = fetched.take(pc.index_in(table["key"], fetched["key"].combine_chunks()))
    own = {
        name: np.asarray(table[name].to_numpy(zero_copy_only=False), np.float32) for name in signals
    }
    of_others = {
        name: _lists(table[field.name].combine_chunks()) for name, field in exchanged.items()
    }
    partner = _exchange_scores(table, pairs, path, own, of_others)
    if any(json.loads(one.metadata[EXCHANGED_FIELD])["rows"] != rows for one in exchanged.values()):
        partner = np.full_like(partner, -1)
    level = _levels(layout, shard_number(path), table)
    return SignalPairs(own, of_others, partner, level, dict(groups_of(pairs, languages)))


def _exchange_scores(
    table: pa.Table,
    pairs: pa.Table,
    path: str,
    own: dict[str, NDArray[np.float32]],
    exchanged: dict[str, NDArray[np.float32]],
) -> NDArray[np.int64]:
    """Puts the score beside the signals and returns whose captions were exchanged, (n, t)."""
    if not len(table) or table["image_embedding"].null_count:
        own[SCORE] = np.full(len(table), np.nan, np.float32)
        return np.full((len(table), EXCHANGES), -1, np.int64)
    image = embedding_array(table, "image_embedding", path)
    text = embedding_array(table, "text_embedding", path)
    captions = np.array([len(texts) for texts in caption_choices(pairs)], np.int64)
    found = exchange_captions(image, text, captions)
    own[SCORE], exchanged[SCORE] = own_scores(image, text), found.cosine
    return found.partner


def _levels(layout: DatasetLayout, shard: int, table: pa.Table) -> NDArray[np.int64]:
    levels = levels_of(layout, shard)
    if levels is None:
        return np.zeros(len(table), np.int64)
    places = pc.index_in(table["key"], levels["key"].combine_chunks())
    return np.asarray(pc.fill_null(levels["alignment_level"].take(places), 0), np.int64)


def _lists(column: pa.Array) -> NDArray[np.float32]:
    """Returns lists of EXCHANGES numbers as rows, (n, EXCHANGES); NaN where there is no list."""
    found = np.full((len(column), EXCHANGES), np.nan, np.float32)
    rows = np.flatnonzero(np.asarray(pc.list_value_length(column).fill_null(0)) == EXCHANGES)
    values = column.take(pa.array(rows)).flatten()
    found[rows] = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, EXCHANGES)
    return found


def _joined(parts: Sequence[SignalPairs]) -> SignalPairs | None:
    """Returns the pairs of all shards; those of a shard that lacks a signal have none."""
    if not parts:
        return None
    sizes = [len(part.level) for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])

    def together(
        values: Sequence[dict[str, NDArray[np.float32]]], *shape: int
    ) -> dict[str, NDArray[np.float32]]:
        names = dict.fromkeys(name for one in values for name in one)
        blanks = [np.full((size, *shape), np.nan, np.float32) for size in sizes]
        return {
            name: np.concatenate(
                [one.get(name, blank) for one, blank in zip(values, blanks, strict=True)]
            )
            for name in names
        }

    kinds = dict.fromkeys(kind for part in parts for kind in part.groups)
    return SignalPairs(
        own=together([part.own for part in parts]),
        exchanged=together([part.exchanged for part in parts], EXCHANGES),
        partner=np.concatenate(
            [
                np.where(part.partner < 0, -1, part.partner + start)
                for part, start in zip(parts, starts, strict=True)
            ]
        ),
        level=np.concatenate([part.level for part in parts]),
        groups={
            kind: [
                name
                for part, size in zip(parts, sizes, strict=True)
                for name in part.groups.get(kind, [""] * size)
            ]
            for kind in kinds
        },
    )
