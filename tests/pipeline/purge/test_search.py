"""What deny-lists name, wherever a dataset holds it."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.deny import DenyLists, Entries
from pipeline.dataset.tars import TarWriter
from pipeline.purge.search import (
    denied_tokens,
    find_denied,
    read_members,
    read_rows,
    reason_of_row,
    traces_of,
)
from schemas.errors import DatasetError, RejectReason
from schemas.shards import DatasetLayout
from schemas.storage import walk_files

KEY, OTHER = "a" * 32, "b" * 32


def lists(*hashes: str) -> DenyLists:
    """Returns lists of one address, one host and some hashes."""
    urls = Entries(["a.example/1.jpg"])
    return DenyLists(urls, Entries(["bad.example"]), Entries(hashes), "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"url": "https://a.example/1.jpg"}, RejectReason.DENIED_URL),
        (
            {"url": "https://x/1", "more_urls": '["http://a.example/1.jpg"]'},
            RejectReason.DENIED_URL,
        ),
        ({"url": "https://cdn.bad.example/2.jpg"}, RejectReason.DENIED_HOST),
        ({"url": "https://a.example/2.jpg", "sha256": "f" * 64}, RejectReason.DENIED_HASH),
        ({"url": None, "pixel_hash": "e" * 32}, RejectReason.DENIED_HASH),
        ({"expected_hash": "sha256:" + "f" * 64}, RejectReason.DENIED_HASH),
        ({"more_images": [{"pixel_hash": "e" * 32}]}, RejectReason.DENIED_HASH),
        ({"url": "https://a.example/2.jpg", "sha256": "0" * 64, "more_images": None}, None),
        ({}, None),
    ],
)
def test_a_row_is_denied_by_its_addresses_and_by_every_hash_that_it_tells(row, reason):
    assert reason_of_row(row, lists("f" * 64, "e" * 32)) is reason


def write_tar(path: Path, **members: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, TarWriter(file) as tar:
        for name, content in members.items():
            tar.add(name, content)


def test_members_are_read_with_their_places(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, **{f"{KEY}.jpg": b"x" * 513, f"{KEY}.txt": b""})
    found = list(read_members(str(path)))
    assert found == [(f"{KEY}.jpg", 512, b"x" * 513), (f"{KEY}.txt", 2048, b"")]
    data = path.read_bytes()
    path.write_bytes(data[:800])
    with pytest.raises(DatasetError, match="ends within a member at byte 0"):
        list(read_members(str(path)))
    path.write_bytes(b"no tar" * 100)
    with pytest.raises(DatasetError, match="is no tar of ours at byte 0"):
        list(read_members(str(path)))
    path.write_bytes(data[:124] + b"not octal..." + data[136:])
    with pytest.raises(DatasetError, match="is no tar of ours at byte 0"):
        list(read_members(str(path)))


def test_rows_have_the_columns_that_are_asked_for_whatever_the_table_has(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"key": ["k"], "url": ["u"]}), path)
    assert list(read_rows(str(path), ["key", "sha256"])) == [{"key": "k", "sha256": None}]
    path.write_bytes(b"none")
    with pytest.raises(DatasetError, match=r"a\.parquet cannot be read"):
        list(read_rows(str(path), ["key"]))


def test_addresses_and_keys_are_found_in_any_text(tmp_path):
    path = tmp_path / "job.log"
    path.write_text(f"got https://a.example/1.jpg, <http://fine.example> and {KEY}.jpg; {OTHER}\n")
    assert set(denied_tokens(str(path), lists(), {KEY})) == {KEY}
    path.write_text('{"url": "https://a.example/1.jpg"}')
    assert set(denied_tokens(str(path), lists(), {KEY})) == {"https://a.example/1.jpg"}


def test_pictures_are_found_by_the_bytes_of_their_file(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    pictures = {f"{KEY}.jpg": b"picture", f"{OTHER}.jpg": b"another", f"{OTHER}.txt": b"picture"}
    write_tar(tmp_path / "train" / "000000.tar", **pictures)
    deny = lists(hashlib.sha1(b"picture").hexdigest())
    assert find_denied(layout, deny) == {KEY: RejectReason.DENIED_HASH}
    count, traces = traces_of(layout, deny, [OTHER])
    assert count == len(walk_files(layout.root)) == 1
    member = "train/000000.tar, member "
    assert traces == [f"{member}{KEY}.jpg", f"{member}{OTHER}.jpg", f"{member}{OTHER}.txt"]
