"""Signals of exchanged pairs, in a column beside each signal: what its control is made from.

They are computed with the signal, when what it needs is at hand: no model runs a second time, and
who looks at a dataset later runs no code that its files name.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.captions import caption_choices
from pipeline.dataset.embeddings import embedding_array
from pipeline.dataset.fetched_rows import fetched_rows
from pipeline.score.reference import HELD_AGAINST_REFERENCE
from schemas.shards import DatasetLayout
from scoring.control import CONTROLLED_ROWS, EXCHANGES, Exchange, exchange_captions, own_scores
from scoring.signals.function import has_control, load_function
from scoring.signals.names import SignalSpec


def is_exchangeable(spec: SignalSpec) -> bool:
    """Returns whether a signal can be had of exchanged pairs without another pass of a model.

    A head looks at the picture alone, and a model that is asked about pairs would have to be asked
    again.
    """
    if spec.kind == "function":
        return has_control(load_function(spec.argument)[0])
    return spec.kind == "clip" or spec.kind in HELD_AGAINST_REFERENCE


def exchange_of(layout: DatasetLayout, shard: int, scored: pa.Table) -> Exchange | None:
    """Returns the first pairs of a shard with captions of others; None without embeddings."""
    rows = scored.slice(0, CONTROLLED_ROWS)
    if rows["image_embedding"].null_count or rows["text_embedding"].null_count or not len(rows):
        return None
    path = layout.scored(shard)
    choices = caption_choices(fetched_rows(layout, shard, rows["key"], ["caption", "captions"]))
    return exchange_captions(
        embedding_array(rows, "image_embedding", path),
        embedding_array(rows, "text_embedding", path),
        np.array([len(texts) for texts in choices], np.int64),
    )


def exchanged_cosines(
    image: NDArray[np.float32], text: NDArray[np.float32], exchange: Exchange
) -> NDArray[np.float32]:
    """Returns the cosines of exchanged pairs by another model, (n, EXCHANGES); NaN without any.

    Args:
        image: unit embeddings of at least the rows that are exchanged, (m, d).
        text: likewise.
    """
    found = np.full(exchange.partner.shape, np.nan, np.float32)
    for trial, partner in enumerate(exchange.partner.T):
        rows = np.flatnonzero(partner >= 0)
        found[rows, trial] = own_scores(image[rows], text[partner[rows]])
    return found


def exchanged_column(values: NDArray[np.float32] | None, rows: int) -> pa.Array:
    """Returns the column of a shard: a list for each pair that was exchanged, null for others.

    Args:
        values: (n, EXCHANGES) of the first n rows; None if none was exchanged.
        rows: of the shard.
    """
    kind = pa.list_(pa.float32())
    if values is None:
        return pa.nulls(rows, kind)
    ends = pa.array(np.arange(len(values) + 1, dtype=np.int32) * EXCHANGES)
    lists = pa.ListArray.from_arrays(ends, pa.array(values.ravel()))
    return pa.concat_arrays([lists, pa.nulls(rows - len(values), kind)])
