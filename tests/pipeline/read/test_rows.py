"""From what an input says of a pair to a clean row, or to a reason against it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.read.rows import image_path, named_hash
from schemas.errors import RejectReason, SampleRejected
from schemas.records import pair_key
from tests.reads import captions, reasons, rows_of


def rows_from(path: Path, *rows: tuple[str, str]) -> list[dict[str, Any]]:
    path.write_text("".join(json.dumps({"url": u, "caption": c}) + "\n" for u, c in rows))
    return rows_of(path)


def test_credentials_are_stored_nowhere(tmp_path: Path) -> None:
    rows = rows_from(
        tmp_path / "in.jsonl",
        ("https://user:secret@a.example/1.jpg", "kept"),
        ("https://user:secret@a.example:x/1.jpg", "bad port"),
        ("//user:secret@a.example/1.jpg", "no scheme"),
        ("HTTPS://secret@a.example/1.jpg", ""),
    )
    assert rows[0]["url"] == "https://a.example/1.jpg"
    assert reasons(rows) == ["bad_url", "bad_url", "missing_caption"]
    assert "secret" not in str(rows)


def test_a_url_with_a_foreign_scheme_is_left_for_the_fetch_stage_to_refuse(tmp_path: Path) -> None:
    pairs = [("ftp://a.example/1.jpg", "one"), ("file:///etc/passwd", "two")]
    rows = rows_from(tmp_path / "in.jsonl", *pairs)
    assert [(row["url"], row["caption"]) for row in rows] == pairs
    assert reasons(rows) == []


def test_the_key_is_that_of_the_trimmed_pair(tmp_path: Path) -> None:
    (row,) = rows_from(tmp_path / "in.jsonl", (" https://a.example/1.jpg ", "\t a cat \n"))
    assert row["key"] == pair_key("https://a.example/1.jpg", "a cat")


def llava(folder: Path) -> Path:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    talk = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]
    records = [
        {"id": "1", "image": "cats/1.jpg", "conversations": turns},
        {"id": "2", "conversations": talk},
        {"id": "3", "image": ["1.jpg", "2.jpg"], "conversations": turns},
        {"id": "4", "image": "../../etc/passwd", "conversations": turns},
        {"id": "5", "conversations": turns},
        {"id": "6", "image": "cats/6.jpg", "conversations": [{"from": "human"}]},
    ]
    path = folder / "llava.json"
    path.write_text(json.dumps(records, indent=1))
    return path


def test_llava_records_keep_their_turns_and_the_first_answer_as_caption(tmp_path: Path) -> None:
    rows = rows_of(llava(tmp_path), image_folder=str(tmp_path / "images"))
    found = {row["caption"]: row for row in rows if row["reason"] is None}
    assert found["A cat."]["url"] == str(tmp_path / "images" / "cats" / "1.jpg")
    assert found["Hi."]["url"] is None
    assert json.loads(found["Hi."]["conversations"])[1] == {"from": "gpt", "value": "Hi."}
    assert found["Hi."]["key"] == pair_key("", found["Hi."]["conversations"])
    wrong = ["image_count_mismatch", "bad_url", "missing_url", "malformed_row"]
    assert reasons(rows) == wrong


def test_llava_captions_can_be_read_as_pairs(tmp_path: Path) -> None:
    rows = rows_of(llava(tmp_path), as_captions=True)
    assert captions(rows) == ["A cat."]
    assert rows[0]["url"] == str(tmp_path / "cats" / "1.jpg")
    assert rows[0]["conversations"] is None


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("/data/images", "a/../b.jpg", "/data/images/b.jpg"),
        ("/data/images/", "/data/images/b.jpg", "/data/images/b.jpg"),
        ("s3://bucket/images", "a.jpg", "s3://bucket/images/a.jpg"),
        ("s3://bucket/images/", "../../x.jpg", "s3://bucket/images/x.jpg"),
    ],
)
def test_an_image_lies_below_its_folder(folder: str, name: str, path: str) -> None:
    assert image_path(folder, name) == path


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../x", "", "."])
def test_a_name_that_leads_out_of_the_folder_is_no_image_of_it(name: str) -> None:
    with pytest.raises(SampleRejected, match="leads out") as rejected:
        image_path("/data/images", name)
    assert rejected.value.reason is RejectReason.BAD_URL


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("md5", "0" * 31 + "F", "md5:" + "0" * 31 + "f"),
        ("MD5", b"\x0a" * 16, "md5:" + "0a" * 16),
        ("sha256", f" {'ab' * 32} ", "sha256:" + "ab" * 32),
        ("sha512", None, None),
        ("sha256", "", None),
    ],
)
def test_a_hash_is_told_with_its_kind(name: str, value: Any, expected: str | None) -> None:
    assert named_hash(name, value) == expected


@pytest.mark.parametrize("value", ["0" * 31, "g" * 32, 12, "0" * 64])
def test_what_is_no_hash_of_its_kind_is_a_malformed_row(value: Any) -> None:
    with pytest.raises(SampleRejected, match="its md5 is no hash"):
        named_hash("md5", value)


ROWS = [
    {"url": "https://host.example/0.jpg", "captions": ["a cat", " a cat ", "", "a black cat"]},
    {"url": "https://host.example/1.jpg", "captions": ["only one"]},
    {"url": "https://host.example/2.jpg", "captions": []},
    {"url": "https://host.example/3.jpg", "captions": None},
    {"url": "https://host.example/4.jpg", "captions": ["猫", "кошка", "قطة"]},
]


def test_a_list_of_captions_is_one_pair_from_parquet_and_from_json(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "pairs.parquet")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    rows, same = rows_of(tmp_path / "pairs.parquet"), rows_of(tmp_path / "pairs.jsonl")
    assert rows == [{**row, "source": "pairs.parquet"} for row in same]
    stored = '["a cat","a black cat"]'
    assert (rows[0]["caption"], rows[0]["captions"]) == ("a cat", stored)
    assert rows[0]["key"] == pair_key("https://host.example/0.jpg", stored)
    assert (rows[1]["caption"], rows[1]["captions"]) == ("only one", None)
    assert rows[1]["key"] == pair_key("https://host.example/1.jpg", "only one")
    assert [row["reason"] for row in rows[2:4]] == [RejectReason.MISSING_CAPTION.value] * 2
    assert json.loads(rows[4]["captions"]) == ["猫", "кошка", "قطة"]


def test_a_list_that_holds_no_text_is_a_malformed_row(tmp_path: Path) -> None:
    row = {"url": "https://host.example/0.jpg", "captions": ["a", {"b": 1}]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row))
    assert rows_of(tmp_path / "pairs.jsonl")[1]["reason"] == RejectReason.MALFORMED_ROW.value
