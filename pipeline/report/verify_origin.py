"""Which pictures of a damaged train shard are not those that the fetch stage left."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.tars import read_members
from pipeline.dataset.train_samples import fetched_part, image_places
from schemas.columns import read_table
from schemas.errors import DatasetError
from schemas.records import FETCHED_SCHEMA
from schemas.shards import DatasetLayout, shard_number
from schemas.stages import Stage
from schemas.storage import list_files, open_read


def unlike_fetched(layout: DatasetLayout, name: str, rows: pa.Table) -> Iterator[tuple[str, str]]:
    """Yields place and fault of each row whose picture differs from that in `fetched/`.

    Of a byte that changed within a picture, the tar's hash tells no more than that there is one.

    Args:
        name: of the train shard.
        rows: its table.
    """
    places = {key: place for place, key in enumerate(rows["key"].to_pylist())}
    with open_read(layout.train(int(name), "tar")) as tar:
        for path in list_files(layout.folder(Stage.FETCH), ".parquet"):
            shard = shard_number(path)
            with open_read(path) as file:
                keys = read_table(file, FETCHED_SCHEMA, ["key"])["key"]
            found = [key for key in keys.filter(pc.is_in(keys, rows["key"])).to_pylist()]
            taken = [rows.slice(places[key], 1).to_pylist()[0] for key in found]
            try:
                yield from _differing(layout, shard, taken, places, tar, name)
            except DatasetError as error:
                yield f"fetched/{shard:05d}.tar", str(error)


def _differing(
    layout: DatasetLayout,
    shard: int,
    rows: list[dict[str, Any]],
    places: dict[str, int],
    tar: Any,
    name: str,
) -> Iterator[tuple[str, str]]:
    members = [member for row in rows for member in fetched_part(row).image_members]
    images = read_members(layout, shard, members)
    for row in rows:
        for member, offset, length in image_places(row):
            tar.seek(offset)
            if tar.read(length) != next(images):
                where = f"train/{name} row {places[row['key']]} ({row['key']})"
                yield where, f"{member} is not the picture that was fetched"
