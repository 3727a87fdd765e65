"""Files of a dataset written anew without some pairs, each whole or not at all."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.tars import TarWriter
from pipeline.dataset.train_samples import image_places
from pipeline.dataset.train_shards import HashingFile
from pipeline.purge.search import read_members
from schemas.columns import file_metadata, table_from_records, write_table
from schemas.errors import RejectReason
from schemas.records import REJECTION_SCHEMA, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, commit_text, exists, open_read, read_json

Denied = Mapping[str, RejectReason]
"""Key to why its pair is denied."""


def _read(path: str) -> tuple[pa.Table, dict[str, str]]:
    """Returns a table with what its file says of itself beside its schema."""
    with open_read(path) as file:
        table = pq.ParquetFile(file).read()
    known = file_metadata(table.schema)
    return table, {name: known[name] for name in known if name not in ("schema_version", "record")}


def _write(path: str, table: pa.Table, metadata: Mapping[str, str]) -> None:
    with commit_file(path) as file:
        write_table(table, file, metadata)


def _is_denied(table: pa.Table, denied: Denied) -> pa.ChunkedArray:
    return pc.is_in(table["key"], value_set=pa.array(list(denied), pa.string()))


def drop_rows(path: str, denied: Denied) -> pa.Table | None:
    """Writes a table without the denied rows; returns those rows, None if it has none."""
    table, metadata = _read(path)
    is_denied = _is_denied(table, denied)
    if not pc.any(is_denied).as_py():
        return None
    _write(path, table.filter(pc.invert(is_denied)), metadata)
    return table.filter(is_denied)


def note_rejections(layout: DatasetLayout, shard: int, rows: pa.Table, denied: Denied) -> None:
    """Puts denied pairs among what the read stage rejected, with nothing left but their key.

    Args:
        rows: of the shard, with `key` and `source`.
    """
    path = layout.rejected(Stage.READ, shard)
    table, metadata = _read(path)
    table = table.filter(pc.invert(pc.is_in(table["key"], value_set=rows["key"].combine_chunks())))
    records = [
        Rejection(
            key=row["key"],
            url=None,
            caption=None,
            source=row["source"],
            stage=Stage.READ.value,
            reason=denied[row["key"]].value,
            is_retryable=False,
            detail="it is on a deny-list; purged",
            http_status=None,
            kept_key=None,
            clip_score=None,
        )
        for row in rows.select(["key", "source"]).to_pylist()
    ]
    added = table_from_records(records, REJECTION_SCHEMA)
    both = pa.concat_tables([table.cast(REJECTION_SCHEMA), added]).sort_by("key")
    _write(path, both, metadata)


def blank_rejections(path: str, denied: Denied) -> None:
    """Takes address and text from rows that the read stage had rejected for another reason."""
    table, metadata = _read(path)
    is_denied = _is_denied(table, denied)
    if not pc.any(is_denied).as_py():
        return
    nothing = pa.scalar(None, pa.string())
    reasons = [
        denied[key].value if key in denied else reason
        for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True)
    ]
    values: dict[str, Any] = {
        "url": pc.if_else(is_denied, nothing, table["url"]),
        "caption": pc.if_else(is_denied, nothing, table["caption"]),
        "reason": pa.array(reasons, pa.string()),
        "detail": pc.if_else(is_denied, "it is on a deny-list; purged", table["detail"]),
        "is_retryable": pc.and_(table["is_retryable"], pc.invert(is_denied)),
    }
    for name, column in values.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), column)
    _write(path, table, metadata)


def rewrite_fetched(layout: DatasetLayout, shard: int, denied: Denied) -> None:
    """Writes a fetched shard without the denied pairs: tar, table, statistics."""
    with commit_file(layout.fetched(shard, "tar")) as file, TarWriter(file) as tar:
        _copy(layout.fetched(shard, "tar"), tar, denied)
    drop_rows(layout.fetched(shard, "parquet"), denied)


def restate(layout: DatasetLayout, shard: int) -> None:
    """Writes a fetched shard's statistics by what its tables hold now."""
    path = layout.fetched(shard, "_stats.json")
    if not exists(path):
        return
    kept = _read(layout.fetched(shard, "parquet"))[0].num_rows
    rejected, _ = _read(layout.rejected(Stage.FETCH, shard))
    counts = Counter(rejected["reason"].to_pylist())
    reasons = {reason.value: counts[reason.value] for reason in RejectReason}
    reasons = {reason: count for reason, count in reasons.items() if count}
    values = read_json(path)
    values |= {"count": kept + rejected.num_rows, "successes": kept}
    values |= {"kept": kept, "rejected": reasons}
    values["status_dict"] = {"success": kept, **reasons}
    commit_text(path, json.dumps(values, indent=2) + "\n")


def rewrite_train(layout: DatasetLayout, shard: int, denied: Denied) -> None:
    """Writes a train shard without the denied samples, and the new places of the others' images."""
    path = layout.train(shard, "tar")
    with commit_file(path) as file:
        output = HashingFile(file)
        with TarWriter(cast(IO[bytes], output)) as tar:
            places = _copy(path, tar, denied)
    table, metadata = _read(layout.train(shard, "parquet"))
    kept = table.filter(pc.invert(_is_denied(table, denied)))
    rows = [_placed(row, places) for row in kept.to_pylist()]
    metadata |= {"tar_sha256": output.sha256, "tar_bytes": str(output.length)}
    _write(layout.train(shard, "parquet"), pa.Table.from_pylist(rows, kept.schema), metadata)


def _placed(row: dict[str, Any], places: Mapping[str, int]) -> dict[str, Any]:
    """Returns a row with the places of its images in the new tar."""
    offsets = [places[name] for name, _, _ in image_places(row)]
    if offsets:
        row["image_offset"] = offsets[0]
        row["more_image_offsets"] = offsets[1:] or None
    return row


def _copy(path: str, tar: TarWriter, denied: Denied) -> dict[str, int]:
    """Copies the members of a tar but those of denied pairs; returns member to its new place."""
    return {
        name: tar.add(name, content)
        for name, _, content in read_members(path)
        if name.split(".", 1)[0] not in denied
    }
