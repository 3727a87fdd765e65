"""Files of a dataset without some of its pairs."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.purge.rewrite import (
    blank_rejections,
    drop_rows,
    note_rejections,
    restate,
    rewrite_fetched,
    rewrite_train,
)
from pipeline.purge.search import read_members as members_of
from schemas.columns import file_metadata
from schemas.errors import RejectReason
from schemas.shards import DatasetLayout
from schemas.stages import Stage


@pytest.fixture
def layout(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    return DatasetLayout(str(tmp_path / "data"))


def keys_of(path: str) -> list[str]:
    return pq.read_table(path)["key"].to_pylist()


def test_denied_rows_leave_a_table_and_what_it_says_of_itself_stays(layout):
    path = layout.fetched(0, "parquet")
    before, metadata = keys_of(path), file_metadata(pq.read_schema(path))
    denied = dict.fromkeys(before[2:5], RejectReason.DENIED_URL)
    dropped = drop_rows(path, denied)
    assert dropped is not None
    assert dropped["key"].to_pylist() == before[2:5]
    assert keys_of(path) == before[:2] + before[5:]
    assert file_metadata(pq.read_schema(path)) == metadata
    written = Path(path).stat()
    assert drop_rows(path, denied) is None
    assert Path(path).stat().st_ino == written.st_ino  # nothing was written anew


def test_a_denied_pair_is_rejected_with_its_key_alone_and_only_once(layout):
    rows = pa.table({"key": ["f" * 32, "1" * 32], "source": ["in"] * 2, "url": ["https://x"] * 2})
    denied = {"f" * 32: RejectReason.DENIED_URL, "1" * 32: RejectReason.DENIED_HASH}
    for _ in range(2):
        note_rejections(layout, 0, rows, denied)
    found = pq.read_table(layout.rejected(Stage.READ, 0)).to_pylist()
    assert [(row["key"][0], row["reason"]) for row in found] == [
        ("1", "denied_hash"),
        ("f", "denied_url"),
    ]
    assert {(row["url"], row["caption"], row["stage"]) for row in found} == {(None, None, "read")}


def test_a_row_rejected_for_another_reason_loses_address_and_text(layout):
    path = layout.rejected(Stage.FETCH, 0)
    (key,) = keys_of(path)
    blank_rejections(path, {"f" * 32: RejectReason.DENIED_URL})
    (untouched,) = pq.read_table(path).to_pylist()
    assert untouched["url"] is not None
    blank_rejections(path, {key: RejectReason.DENIED_HOST})
    (row,) = pq.read_table(path).to_pylist()
    assert (row["url"], row["caption"], row["reason"]) == (None, None, "denied_host")
    assert (row["detail"], row["is_retryable"]) == ("it is on a deny-list; purged", False)


def test_a_fetched_shard_and_its_statistics_lose_denied_pairs(layout):
    before = keys_of(layout.fetched(0, "parquet"))
    rewrite_fetched(layout, 0, {before[0]: RejectReason.DENIED_HASH})
    assert keys_of(layout.fetched(0, "parquet")) == before[1:]
    names = [name for name, _, _ in members_of(layout.fetched(0, "tar"))]
    assert sorted({name[:32] for name in names}) == sorted(before[1:])
    restate(layout, 0)
    values = json.loads(Path(layout.fetched(0, "_stats.json")).read_text())
    assert (values["count"], values["kept"]) == (len(before), len(before) - 1)
    assert values["rejected"] == {"http_status": 1}
    assert values["status_dict"] == {"success": len(before) - 1, "http_status": 1}


def test_a_train_shard_has_its_other_images_at_their_new_places(layout):
    path = layout.train(0, "parquet")
    before = {row["key"]: row for row in pq.read_table(path).to_pylist()}
    data = Path(layout.train(0, "tar")).read_bytes()
    first = next(iter(before))
    rewrite_train(layout, 0, {first: RejectReason.DENIED_URL})
    now = Path(layout.train(0, "tar")).read_bytes()
    rows = pq.read_table(path).to_pylist()
    assert [row["key"] for row in rows] == list(before)[1:]
    for row in rows:
        old = before[row["key"]]
        picture = data[old["image_offset"] :][: old["image_bytes"]]
        assert now[row["image_offset"] :][: row["image_bytes"]] == picture
        assert row["image_offset"] < old["image_offset"]
    metadata = file_metadata(pq.read_schema(path))
    assert metadata["tar_sha256"] == hashlib.sha256(now).hexdigest()
    assert metadata["tar_bytes"] == str(len(now))
