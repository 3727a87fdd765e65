"""Pictures of a dataset's rows, read from their place in the tars; none is fetched from the web."""

import functools

from pipeline.browse.rows import Row, shard_of
from pipeline.dataset.tars import member_places
from schemas.errors import DatasetError
from schemas.shards import DatasetLayout, image_member
from schemas.stages import Stage
from schemas.storage import exists, open_read

TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

INDEXED_SHARDS = 16
"""Fetched shards whose members' places are remembered: about 2 megabytes each."""


class Pictures:
    """Reads pictures of kept rows from `train/`, of others from `fetched/`."""

    def __init__(self, layout: DatasetLayout) -> None:
        self._layout = layout
        self._index = functools.lru_cache(INDEXED_SHARDS)(self._read_index)

    def read(self, row: Row) -> tuple[str, bytes] | None:
        """Returns the type and the bytes of a row's (first) picture; None where there is none."""
        stage, shard = shard_of(row)
        if stage is Stage.PACK:
            packed = (row["image_offset"], row["image_bytes"])
            return self._range(self._layout.train(shard, "tar"), packed, row["image_format"])
        if stage.number <= Stage.FETCH.number:
            return None
        path = self._layout.fetched(shard, "tar")
        if not exists(path):
            return None
        for image_format in TYPES:
            place = self._index(path).get(image_member(row["key"], image_format))
            if place is not None:
                return self._range(path, place, image_format)
        return None

    def _range(
        self, path: str, place: tuple[int | None, int | None], image_format: str | None
    ) -> tuple[str, bytes] | None:
        offset, length = place
        if offset is None or length is None or image_format not in TYPES or not exists(path):
            return None
        with open_read(path) as file:
            file.seek(offset)
            return TYPES[image_format], file.read(length)

    def _read_index(self, path: str) -> dict[str, tuple[int, int]]:
        try:
            with open_read(path) as file:
                return member_places(file, path)
        except DatasetError:
            return {}
