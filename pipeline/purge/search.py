"""What deny-lists name among all that a dataset holds: tables, pictures, other files."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.deny import DENIED, DenyLists
from pipeline.dataset.tars import BLOCK_BYTES, name_and_size, padded
from schemas.errors import DatasetError, RejectReason
from schemas.progress import shown
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import open_read, walk_files

LOOKED_AT = ("url", "more_urls", "sha256", "pixel_hash", "expected_hash", "more_images")
"""Columns that tell what a row points to."""

DENIED_REASONS = frozenset(reason.value for reason in DENIED)

TOKEN = re.compile(rb"[a-z0-9+.-]+://[^\s\"'<>\\]+|[0-9a-f]{32}")
"""Addresses and keys in texts."""


def find_denied(layout: DatasetLayout, deny: DenyLists) -> dict[str, RejectReason]:
    """Returns the keys of all pairs that are denied, wherever the dataset holds them, and why.

    Those among them that fetching refused, by where they led or what was downloaded: their pairs,
    with address and caption, stand as they were read.
    """
    found: dict[str, RejectReason] = {}
    refused: dict[str, RejectReason] = {}
    tables = sorted(_tables(layout), key=lambda path: not _is_of_rejections(layout, path))
    for path in shown("Looking through tables", tables, len(tables), unit="table"):
        is_of_rejections = _is_of_rejections(layout, path)
        for row in read_rows(path, ["key", "reason", *LOOKED_AT]):
            reason = reason_of_row(row, deny)
            if is_of_rejections and row["reason"] in DENIED_REASONS:
                refused[row["key"]] = RejectReason(row["reason"])
            elif reason is None:
                reason = refused.get(row["key"])
            if reason is not None:
                found[row["key"]] = reason
    tars = [path for path in _files(layout) if path.endswith(".tar")] if len(deny.hashes) else []
    for path in shown("Looking through pictures", tars, len(tars), unit="tar"):
        for name, _, content in read_members(path):
            if not name.endswith((".txt", ".json")) and deny.denies_bytes(content):
                found[name.split(".", 1)[0]] = RejectReason.DENIED_HASH
    return found


def reason_of_row(row: dict[str, Any], deny: DenyLists) -> RejectReason | None:
    """Returns why a row of any table is denied, by its addresses and the hashes that it tells."""
    if row.get("url"):
        reason = deny.reason_of_urls((row["url"], *json.loads(row.get("more_urls") or "[]")))
        if reason is not None:
            return reason
    told = [row, *(row.get("more_images") or ())]
    hashes = [one.get(name) for one in told for name in ("sha256", "pixel_hash")]
    hashes.append((row.get("expected_hash") or "").rpartition(":")[2] or None)
    return RejectReason.DENIED_HASH if any(map(deny.denies_hash, hashes)) else None


def traces_of(
    layout: DatasetLayout, deny: DenyLists, keys: Iterable[str]
) -> tuple[int, Sequence[str]]:
    """Returns how many files a dataset has, and where in them something denied still stands.

    All is read again: each row of each table, each member of each tar, each other file as text.
    Rejected rows of the read stage may keep a key, which tells neither address nor text.
    """
    wanted, traces = set(keys), []
    files = _files(layout)
    for path in shown("Reading all again", files, len(files), unit="file"):
        name = path.removeprefix(f"{layout.root}/")
        if path.endswith(".parquet"):
            may_hold_key = name.startswith(f"rejected/{Stage.READ.value}/")
            for row in read_rows(path, ["key", "caption", *LOOKED_AT]):
                is_there = row["key"] in wanted and not (may_hold_key and row["caption"] is None)
                if is_there or reason_of_row(row, deny) is not None:
                    traces.append(f"{name}, key {row['key']}")
        elif path.endswith(".tar"):
            for member, _, content in read_members(path):
                is_picture = not member.endswith((".txt", ".json"))
                if member.split(".", 1)[0] in wanted or (is_picture and deny.denies_bytes(content)):
                    traces.append(f"{name}, member {member}")
        elif not path.endswith((".npy", ".npz", ".arrow")):
            traces += [f"{name}: {text}" for text in denied_tokens(path, deny, wanted)]
        else:
            traces.append(f"{name} is of work in between")
    return len(files), traces


def denied_tokens(path: str, deny: DenyLists, keys: set[str]) -> Iterator[str]:
    """Yields the keys and addresses in a text that are denied, as the text spells them."""
    with open_read(path) as file:
        data = file.read()
    for token in set(TOKEN.findall(data)):
        text = token.decode(errors="replace")
        if text in keys or ("://" in text and deny.reason_of_urls([text]) is not None):
            yield text


def read_rows(path: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of a table with those of the columns that it has, None for others.

    Raises:
        DatasetError: if it cannot be read.
    """
    try:
        with open_read(path) as file:
            parquet = pq.ParquetFile(file)
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(8192, columns=names, use_threads=False):
                for row in batch.to_pylist():
                    yield {**dict.fromkeys(columns), **row}
    except pa.ArrowException as error:
        raise DatasetError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def read_members(path: str) -> Iterator[tuple[str, int, bytes]]:
    """Yields name, place of the content and content of each member of one of our tars.

    Raises:
        DatasetError: if it is none.
    """
    with open_read(path) as file:
        place = 0
        while header := file.read(BLOCK_BYTES):
            if not header.strip(b"\0"):
                return
            try:
                name, size = name_and_size(header)
            except ValueError as error:
                raise DatasetError(f"{path} is no tar of ours at byte {place}") from error
            content = file.read(padded(size))
            if len(content) < size:
                raise DatasetError(f"{path} ends within a member at byte {place}")
            yield name, place + BLOCK_BYTES, content[:size]
            place += BLOCK_BYTES + len(content)


def _is_of_rejections(layout: DatasetLayout, path: str) -> bool:
    return path.startswith(f"{layout.root}/rejected/")


def _files(layout: DatasetLayout) -> list[str]:
    return walk_files(layout.root)


def _tables(layout: DatasetLayout) -> list[str]:
    return [path for path in _files(layout) if path.endswith(".parquet")]
