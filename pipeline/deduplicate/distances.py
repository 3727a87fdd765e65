"""How far duplicates are from what stays in their place, over all shards.

Each shard lends what stays of it to those that compare their rows with it, a batch of a file for
each, so that no step holds more than the duplicates of a shard.
"""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.arrow_files import read_batches, write_batches
from pipeline.dataset.worktimes import timed
from pipeline.deduplicate.plan import SearchPlan
from pipeline.deduplicate.search import flat, scored_thumbnails, spill_path, unit_length
from schemas.columns import read_table
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, open_read
from scoring.duplicates.looks import Looks
from scoring.duplicates.search import exact_cosines

APPEARANCE = pa.schema({"image_embedding": pa.list_(pa.float16()), "thumbnail": pa.binary()})


def lend_kept(shard: int, layout: DatasetLayout, plan: SearchPlan) -> int:
    """Returns the shard once what stays of it lies ready for those that compare their rows with it.

    A batch for each shard, with the embedding and the thumbnail of the row that stays.
    """
    path = spill_path(plan, "kept", shard)
    if plan.is_done or exists(path):
        return shard
    with timed(layout, Stage.DEDUPLICATE, "lend") as work:
        place = plan.shards.index(shard)
        work.rows = plan.offsets[place + 1] - plan.offsets[place]
        _lend(shard, layout, plan, path)
    return shard


def _lend(shard: int, layout: DatasetLayout, plan: SearchPlan, path: str) -> None:
    loans = read_batches(spill_path(plan, "loans", shard))
    place = plan.shards.index(shard)
    own = pa.array(loans["kept_row"].to_numpy() - plan.offsets[place])
    looks = _appearance(layout, shard, own) if len(loans) else APPEARANCE.empty_table()
    table = pa.table({"row": loans["row"], **{name: looks[name] for name in looks.column_names}})
    of_shard = np.searchsorted(plan.offsets, table["row"].to_numpy(), side="right") - 1
    table = table.take(pa.array(np.argsort(of_shard, kind="stable"))).combine_chunks()
    bounds = np.searchsorted(np.sort(of_shard), np.arange(len(plan.shards) + 1))
    empty = pa.RecordBatch.from_pylist([], table.schema)
    batches = [
        table.slice(first, last - first).to_batches()[0] if last > first else empty
        for first, last in itertools.pairwise(bounds.tolist())
    ]
    write_batches(path, batches, table.schema)


def distances_to_kept(
    shard: int, layout: DatasetLayout, plan: SearchPlan, rejected: pa.Table
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Returns how far a shard's duplicates are from what stayed: cosines, (m,), and looks, (m,).

    Args:
        rejected: of the decisions about the shard; NaN is what cannot be told.
    """
    count, place = len(rejected), plan.shards.index(shard)
    cosines, differences = np.full(count, np.nan), np.full(count, np.nan, np.float32)
    lenders = np.searchsorted(plan.offsets, rejected["kept_row"].to_numpy(), side="right") - 1
    own = _appearance(layout, shard, rejected["row"]) if count else APPEARANCE.empty_table()
    for lender in np.unique(lenders).tolist():
        kept = read_batches(spill_path(plan, "kept", plan.shards[lender]), [place])
        mine = np.flatnonzero(lenders == lender)
        rows = rejected["row"].take(pa.array(mine)).to_numpy() + plan.offsets[place]
        theirs = pc.index_in(pa.array(rows), value_set=kept["row"].combine_chunks())
        both = [own.take(pa.array(mine)), kept.take(theirs).select(own.column_names)]
        cosines[mine] = _cosines(*(table["image_embedding"] for table in both))
        copies = pa.concat_arrays([table["thumbnail"].combine_chunks() for table in both])
        halves = np.arange(2 * len(mine)).reshape(2, -1)
        differences[mine] = Looks(copies).differences(halves[0], halves[1])
    return cosines, differences


def _appearance(layout: DatasetLayout, shard: int, rows: pa.Array) -> pa.Table:
    """Returns the embedding and the thumbnail of some scored rows of a shard."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["image_embedding"])
    table = scored.append_column("thumbnail", scored_thumbnails(layout, shard))
    return table.take(rows).cast(APPEARANCE)


def _cosines(left: pa.ChunkedArray, right: pa.ChunkedArray) -> NDArray[np.float64]:
    """Returns the cosines of stored embeddings, (m,); NaN without embeddings of one width."""
    if left.null_count or right.null_count:
        return np.full(len(left), np.nan)
    one, other = (unit_length(flat(side).reshape(len(left), -1)) for side in (left, right))
    rows = np.arange(len(left))
    return exact_cosines(np.concatenate([one, other]), rows, rows + len(left))
