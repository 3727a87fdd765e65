"""Rows of a fetched shard's table, found by their keys."""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.columns import read_table
from schemas.records import FETCHED_SCHEMA, PAIR_COLUMNS, CaptionedImage
from schemas.shards import DatasetLayout
from schemas.storage import open_read


def fetched_rows(
    layout: DatasetLayout, shard: int, keys: pa.Array | pa.ChunkedArray, columns: list[str]
) -> pa.Table:
    """Returns columns of the fetched pairs with these keys, in the order of the keys.

    Args:
        keys: all of them of the shard.
    """
    with open_read(layout.fetched(shard, "parquet")) as file:
        fetched = read_table(file, FETCHED_SCHEMA, ["key", *columns])
    places = pc.index_in(keys, value_set=fetched["key"].combine_chunks())
    return fetched.take(places).select(columns)


def fetched_pairs(
    layout: DatasetLayout, shard: int, keys: pa.Array | pa.ChunkedArray
) -> list[CaptionedImage]:
    """Returns the fetched pairs with these keys, in the order of the keys; reads none for none."""
    if not len(keys):
        return []
    columns = [name for name in PAIR_COLUMNS if name != "key"]
    rows = fetched_rows(layout, shard, keys, columns).to_pylist()
    return [CaptionedImage(key=key, **row) for key, row in zip(keys.to_pylist(), rows, strict=True)]
