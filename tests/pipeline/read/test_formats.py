"""Each format's rows are the same rows, whatever they are stored as."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.fetches import picture
from tests.reads import PLAIN, TEXTS, captions, plainly, reasons, rows_of, write


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.binary(),
        pa.large_string(),
        pa.large_binary(),
        pa.string_view(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int32(), pa.binary()),
    ],
    ids=str,
)
def test_text_is_read_alike_whatever_type_it_is_stored_as(
    kind: pa.DataType, tmp_path: Path
) -> None:
    stored = [text.encode() for text in TEXTS] if "binary" in str(kind) else TEXTS
    array = pa.array(stored, kind.value_type if pa.types.is_dictionary(kind) else kind)
    array = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    path = write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=array)
    assert captions(rows_of(path)) == TEXTS


def test_bytes_of_fixed_length_and_bytes_as_urls_are_text(tmp_path: Path) -> None:
    urls = pa.array([url.encode() for url in PLAIN], pa.binary(len(PLAIN[0])))
    texts = pa.array([b"one", b"two", b"six"], pa.binary(3))
    rows = rows_of(write(tmp_path / "in.parquet", url=urls, caption=texts))
    assert [row["url"] for row in rows] == PLAIN
    assert captions(rows) == ["one", "two", "six"]


@pytest.mark.parametrize("kind", [pa.list_(pa.binary()), pa.large_list(pa.large_binary())])
def test_lists_of_bytes_are_several_captions(kind: pa.DataType, tmp_path: Path) -> None:
    lists = pa.array([[b"a", "ä".encode()], [b"b"], [b"\xff", b"c"]], kind)
    rows = rows_of(write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=lists))
    assert [row["captions"] for row in rows][:2] == ['["a","ä"]', None]
    assert captions(rows) == ["a", "b"]
    assert reasons(rows) == ["malformed_row"]


def test_tables_of_image_folders_may_spell_paths_as_windows_does(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("sub/a.jpg", "b.jpg", "c\\d.jpg"):
        (folder / name).write_bytes(picture(1))
    lines = ["file_name,text", r"sub\a.jpg,an a", r".\b.jpg,a b", r"c\d.jpg,as it is"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    assert sorted(captions(rows_of(folder))) == ["a b", "an a", "as it is"]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz"])
def test_text_files_give_the_same_pairs_as_parquet(tmp_path: Path, ending: str) -> None:
    rows = [
        ("https://a.example/1.jpg", 'she said "hello"'),
        ("https://a.example/2.jpg", "commas, and ünïcode"),
    ]
    if ending.startswith("csv"):
        text = "URL,TEXT\n" + "".join(
            '{},"{}"\r\n'.format(url, caption.replace('"', '""')) for url, caption in rows
        )
    elif ending.startswith("tsv"):
        text = "URL\tTEXT\n" + "".join(f"{url}\t{caption}\n" for url, caption in rows)
    else:
        text = "".join(json.dumps({"URL": url, "TEXT": text}) + "\n" for url, text in rows)
    path = tmp_path / f"in.{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    found = rows_of(path)
    assert [(row["url"], row["caption"]) for row in found] == rows
    assert reasons(found) == []


def test_a_broken_csv_row_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"url,caption\nhttps://a.example/1.jpg,one\nhttps://a.example/2.jpg\n"
        b"https://a.example/3.jpg,a,b\nhttps://a.example/4.jpg,\xff\xfe\n\n"
        b'https://a.example/5.jpg,"two\nlines"\n'
    )
    rows = rows_of(path)
    assert captions(rows) == ["one", "two\nlines"]
    assert reasons(rows) == ["malformed_row"] * 3


def test_a_url_list_without_captions_is_rejected_row_by_row(tmp_path: Path) -> None:
    text = "https://a.example/1.jpg\nhttps://a.example/2.jpg\ttwo\n"
    rows = rows_of(plainly(tmp_path / "in.txt", text))
    assert captions(rows) == ["two"]
    assert reasons(rows) == ["missing_caption"]


def test_images_of_a_folder_take_the_captions_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "c.webp", "deep/d.jpg", "e.jpg"):
        (folder / name).write_bytes(b"")
    (folder / "a.txt").write_text("from\n text")
    (folder / "b.json").write_text('{"caption": "from json"}')
    (folder / "metadata.csv").write_text("file_name,text\nc.webp,from table\ndeep/d.jpg,deep\n")
    rows = rows_of(folder)
    assert {Path(row["url"]).name: row["caption"] for row in rows if row["reason"] is None} == {
        "a.jpg": "from text",
        "b.png": "from json",
        "c.webp": "from table",
        "d.jpg": "deep",
    }
    assert reasons(rows) == ["missing_caption"]
