"""The samples of finished train shards, with their images read from where their rows say."""

from collections.abc import Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.tars import BLOCK_BYTES
from schemas.columns import check_schema, kept_fields
from schemas.errors import DatasetError
from schemas.records import FETCHED_SCHEMA, TRAIN_SCHEMA, FetchedSample
from schemas.shards import DatasetLayout, image_member
from schemas.storage import open_read

OUR_NAMES = frozenset(TRAIN_SCHEMA.names)

ROWS_AT_ONCE = 1024


def read_rows(
    layout: DatasetLayout, shard: int, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    """Yields the rows of a train shard, some at a time, in their order.

    Raises:
        DatasetError: if the table is damaged, or of another version.
    """
    path = layout.train(shard, "parquet")
    try:
        with open_read(path) as file:
            parquet = pq.ParquetFile(file)
            check_schema(parquet.schema_arrow, TRAIN_SCHEMA, path)
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, FileNotFoundError) as error:
        raise DatasetError(
            f"{path} cannot be read ({' '.join(str(error).split())}): "
            f"`aligngpt-curate verify {layout.root}` says what else is damaged"
        ) from error


def read_kept_fields(layout: DatasetLayout, shards: Sequence[int]) -> list[pa.Field]:
    """Returns the input's own columns in the train shards of a dataset: the same in all."""
    if not shards:
        return []
    with open_read(layout.train(shards[0], "parquet")) as file:
        return kept_fields(pq.read_schema(file))


def image_places(row: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Returns member, first byte and length of each image of a row, in their order."""
    if row["image_format"] is None:
        return []
    offsets = [row["image_offset"], *(row["more_image_offsets"] or ())]
    lengths = [row["image_bytes"], *(row["more_image_bytes"] or ())]
    return [
        (image_member(row["key"], row["image_format"], number), offset, length)
        for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True))
    ]


def read_images(tar: IO[bytes], path: str, row: dict[str, Any]) -> tuple[bytes, ...]:
    """Returns the encoded images of a row of a train shard.

    Args:
        tar: the shard's tar, open; where it stands does not matter.
        path: how messages call it.

    Raises:
        DatasetError: if they are not where the row says.
    """
    images = []
    for name, offset, length in image_places(row):
        tar.seek(offset - BLOCK_BYTES)
        found = tar.read(BLOCK_BYTES + length)
        is_named = found[:100].rstrip(b"\0") == name.encode()
        if len(found) != BLOCK_BYTES + length or not is_named:
            raise DatasetError(
                f"{path} does not hold {name} where its table says: the shard is damaged; "
                "`aligngpt-curate verify` finds all such shards"
            )
        images.append(found[BLOCK_BYTES:])
    return tuple(images)


def fetched_part(row: dict[str, Any]) -> FetchedSample:
    """Returns what the fetch stage knew of a train sample."""
    kept = {name: value for name, value in row.items() if name not in OUR_NAMES}
    return FetchedSample(**{name: row[name] for name in FETCHED_SCHEMA.names}, kept=kept or None)


class TarReaders:
    """Reads the images of samples from the tars that they lie in, one open for each dataset."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, IO[bytes]]] = {}

    def images(self, path: str, row: dict[str, Any]) -> tuple[bytes, ...]:
        """Returns the encoded images of a row of a train shard.

        Raises:
            DatasetError: if the tar does not hold them where the row says.
        """
        return read_images(self._file(path), path, row) if row["image_format"] else ()

    def _file(self, path: str) -> IO[bytes]:
        folder = path.rsplit("/", 1)[0]
        name, file = self._open.get(folder, ("", None))
        if file is None or name != path:
            self.close(folder)
            try:
                file = open_read(path)
            except FileNotFoundError as error:
                raise DatasetError(f"{path} is missing: bring it back, or pack anew") from error
            self._open[folder] = (path, file)
        return file

    def close(self, folder: str | None = None) -> None:
        """Closes the tar of a dataset, or all."""
        for name in [folder] if folder is not None else list(self._open):
            if name in self._open:
                self._open.pop(name)[1].close()
