import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.read.inputs import check_inputs
from pipeline.read.transform import ReadPairs
from schemas.columns import read_table
from schemas.errors import ConfigError, RejectReason
from schemas.records import PAIR_SCHEMA, REJECTION_SCHEMA, pair_key
from schemas.shards import DatasetLayout
from tests.curations import record_of
from tests.pipelines import shard_numbers


def read_files(root: Path, *files: Path, **settings) -> list[int]:
    """Returns the shard numbers that reading the files gives."""
    config = ReadConfig(**settings)
    inputs = check_inputs([*map(str, files)], config)
    return shard_numbers(
        root, lambda pipeline: pipeline | ReadPairs(DatasetLayout(str(root)), config, inputs)
    )


def kept(root: Path) -> list[dict]:
    paths = sorted((root / "pairs").glob("*.parquet"))
    return [row for path in paths for row in read_table(str(path), PAIR_SCHEMA).to_pylist()]


def rejected(root: Path) -> list[dict]:
    paths = sorted((root / "rejected" / "read").glob("*.parquet"))
    return [row for path in paths for row in read_table(str(path), REJECTION_SCHEMA).to_pylist()]


def reasons(root: Path) -> dict[str, int]:
    return dict(Counter(row["reason"] for row in rejected(root)))


def contents(root: Path) -> dict[str, bytes]:
    """Returns the bytes of every file of the dataset that is not about the run."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "_run" not in path.parts
    }


def rows_of(count: int) -> list[tuple[str, str]]:
    return [(f"https://images.example/{n}.jpg", f"picture number {n}") for n in range(count)]


def write_parquet(path: Path, rows: list[tuple], names: tuple[str, ...] = ("url", "caption")):
    columns = {
        name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def test_shards_hold_exactly_the_wanted_number_of_pairs_in_the_order_of_their_keys(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", rows_of(250))
    assert read_files(tmp_path / "out", source, pairs_per_shard=100) == [0, 1, 2]
    tables = [
        pq.read_table(tmp_path / "out" / "pairs" / f"{shard:05d}.parquet") for shard in range(3)
    ]
    assert [table.num_rows for table in tables] == [100, 100, 50]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert keys == sorted(keys)
    assert set(keys) == {pair_key(url, caption) for url, caption in rows_of(250)}


def test_shards_do_not_depend_on_the_order_of_the_rows_nor_on_files_or_partitions(
    tmp_path, monkeypatch
):
    rows = rows_of(300) + rows_of(20) + [("", "no url"), ("https://a.example/x", " ")] * 2
    first = write_parquet(tmp_path / "in.parquet", rows)
    read_files(tmp_path / "one", first, pairs_per_shard=70)

    random.Random(0).shuffle(rows)
    folder = tmp_path / "many"
    folder.mkdir()
    # `source` names the file, so both parts bear the same name in folders of their own.
    for part, piece in enumerate((rows[:40], rows[40:])):
        (folder / str(part)).mkdir()
        write_parquet(folder / str(part) / "in.parquet", piece)
    monkeypatch.setattr("pipeline.read.transform.PARTITION_BYTES", 2000)
    monkeypatch.setattr("pipeline.read.shuffle.RUN_BYTES", 5000)
    read_files(tmp_path / "two", folder / "*" / "in.parquet", pairs_per_shard=70)
    assert len(contents(tmp_path / "one")) == 10
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_row_is_kept_or_rejected_with_its_reason(tmp_path):
    source = tmp_path / "in.jsonl"
    rows = [
        {"url": "https://a.example/1.jpg", "caption": "one"},
        {"url": "https://a.example/1.jpg", "caption": " one "},
        {"url": "https://a.example/2.jpg", "caption": ""},
        {"url": "https://a.example/3.jpg", "caption": None},
        {"url": None, "caption": "four"},
        {"caption": "five"},
        {"url": "pictures/6.jpg", "caption": "six"},
        {"url": "https:///7.jpg", "caption": "seven"},
        {"url": "https://a.example:port/8.jpg", "caption": "eight"},
        {"url": "https://a.example/\u00009.jpg", "caption": "nine"},
        {"url": {"href": "x"}, "caption": "ten"},
        {"url": "https://a.example/11.jpg", "caption": "\ud800"},
        ["https://a.example/12.jpg", "twelve"],
    ]
    lines = [json.dumps(row) for row in rows] + ["{cut", ""]
    source.write_text("\n".join(lines))
    read_files(tmp_path / "out", source)
    assert [row["caption"] for row in kept(tmp_path / "out")] == ["one"]
    assert reasons(tmp_path / "out") == {
        "duplicate_row": 1,
        "missing_caption": 2,
        "missing_url": 2,
        "bad_url": 4,
        "malformed_row": 4,
    }
    assert len(kept(tmp_path / "out")) + len(rejected(tmp_path / "out")) == len(rows) + 1


def test_a_duplicate_names_the_pair_that_stayed(tmp_path):
    rows = rows_of(1) * 3
    read_files(tmp_path / "out", write_parquet(tmp_path / "in.parquet", rows))
    assert [row["kept_key"] for row in rejected(tmp_path / "out")] == [pair_key(*rows[0])] * 2


def test_of_equal_pairs_the_first_by_source_and_hash_stays_whatever_the_order(tmp_path):
    row = rows_of(1)[0]
    names = ("url", "caption", "md5")
    write_parquet(tmp_path / "b.parquet", [(*row, "0" * 32)], names)
    write_parquet(tmp_path / "a.parquet", [(*row, "f" * 32), (*row, "e" * 32)], names)
    files = (tmp_path / "b.parquet", tmp_path / "a.parquet")
    read_files(tmp_path / "out", *files, verify_hashes=True)
    (stayed,) = kept(tmp_path / "out")
    assert (stayed["source"], stayed["expected_hash"]) == ("a.parquet", "md5:" + "e" * 32)


def test_credentials_are_stored_nowhere(tmp_path):
    rows = [
        ("https://user:secret@a.example/1.jpg", "kept"),
        ("https://user:secret@a.example:x/1.jpg", "bad port"),
        ("//user:secret@a.example/1.jpg", "no scheme"),
        ("HTTPS://secret@a.example/1.jpg", ""),
    ]
    read_files(tmp_path / "out", write_parquet(tmp_path / "in.parquet", rows))
    assert [row["url"] for row in kept(tmp_path / "out")] == ["https://a.example/1.jpg"]
    assert len(rejected(tmp_path / "out")) == 3
    assert "secret" not in str(kept(tmp_path / "out")) + str(rejected(tmp_path / "out"))


def test_a_url_with_a_foreign_scheme_is_left_for_the_fetch_stage_to_refuse(tmp_path):
    rows = [("ftp://a.example/1.jpg", "one"), ("file:///etc/passwd", "two")]
    read_files(tmp_path / "out", write_parquet(tmp_path / "in.parquet", rows))
    assert {row["url"] for row in kept(tmp_path / "out")} == {url for url, _ in rows}


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz"])
def test_text_files_give_the_same_pairs_as_parquet(tmp_path, ending):
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
    read_files(tmp_path / "out", path)
    assert {(row["url"], row["caption"]) for row in kept(tmp_path / "out")} == set(rows)
    assert rejected(tmp_path / "out") == []


def test_a_broken_csv_row_costs_only_itself(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"url,caption\nhttps://a.example/1.jpg,one\nhttps://a.example/2.jpg\n"
        b"https://a.example/3.jpg,a,b\nhttps://a.example/4.jpg,\xff\xfe\n\n"
        b'https://a.example/5.jpg,"two\nlines"\n'
    )
    read_files(tmp_path / "out", path)
    assert {row["caption"] for row in kept(tmp_path / "out")} == {"one", "two\nlines"}
    assert reasons(tmp_path / "out") == {"malformed_row": 3}


def test_lines_are_read_once_whatever_the_byte_ranges(tmp_path, monkeypatch):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in rows_of(40)))
    monkeypatch.setattr("pipeline.read.splits.SPLIT_BYTES", 37)
    read_files(tmp_path / "out", path)
    assert len(kept(tmp_path / "out")) == 40
    assert rejected(tmp_path / "out") == []


def test_a_url_list_without_captions_is_rejected_row_by_row(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("https://a.example/1.jpg\nhttps://a.example/2.jpg\ttwo\n")
    read_files(tmp_path / "out", path)
    assert [row["caption"] for row in kept(tmp_path / "out")] == ["two"]
    assert reasons(tmp_path / "out") == {"missing_caption": 1}


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


def test_llava_records_keep_their_turns_and_the_first_answer_as_caption(tmp_path):
    read_files(tmp_path / "out", llava(tmp_path), image_folder=str(tmp_path / "images"))
    rows = {row["caption"]: row for row in kept(tmp_path / "out")}
    assert rows["A cat."]["url"] == str(tmp_path / "images" / "cats" / "1.jpg")
    assert rows["Hi."]["url"] is None
    assert json.loads(rows["Hi."]["conversations"])[1] == {"from": "gpt", "value": "Hi."}
    assert rows["Hi."]["key"] == pair_key("", rows["Hi."]["conversations"])
    assert reasons(tmp_path / "out") == {
        "image_count_mismatch": 1,
        "bad_url": 1,
        "missing_url": 1,
        "malformed_row": 1,
    }


def test_llava_captions_can_be_read_as_pairs(tmp_path):
    read_files(tmp_path / "out", llava(tmp_path), as_captions=True)
    (row,) = kept(tmp_path / "out")
    assert row["url"] == str(tmp_path / "cats" / "1.jpg")
    assert (row["caption"], row["conversations"]) == ("A cat.", None)


def test_a_json_list_longer_than_the_reading_buffer_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.read.texts.CHUNK_CHARACTERS", 50)
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"url": url, "caption": text} for url, text in rows_of(30)]))
    read_files(tmp_path / "out", path)
    assert len(kept(tmp_path / "out")) == 30


def test_images_of_a_folder_take_the_captions_beside_them(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "c.webp", "deep/d.jpg", "e.jpg"):
        (folder / name).write_bytes(b"")
    (folder / "a.txt").write_text("from\n text")
    (folder / "b.json").write_text('{"caption": "from json"}')
    (folder / "metadata.csv").write_text("file_name,text\nc.webp,from table\ndeep/d.jpg,deep\n")
    read_files(tmp_path / "out", folder)
    captions = {Path(row["url"]).name: row["caption"] for row in kept(tmp_path / "out")}
    assert captions == {
        "a.jpg": "from text",
        "b.png": "from json",
        "c.webp": "from table",
        "d.jpg": "deep",
    }
    assert reasons(tmp_path / "out") == {"missing_caption": 1}


def test_what_is_read_is_not_read_again(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", rows_of(30))
    read_files(tmp_path / "out", source, pairs_per_shard=10)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert read_files(tmp_path / "out", source, pairs_per_shard=10) == [0, 1, 2]
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_shorter_input_leaves_no_shards_of_the_longer_one_behind(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", rows_of(30))
    layout = DatasetLayout(str(tmp_path / "out"))
    read_files(tmp_path / "out", source, pairs_per_shard=10)
    record_of(layout).write()
    write_parquet(source, rows_of(15))
    assert read_files(tmp_path / "out", source, pairs_per_shard=10) == [0, 1]
    assert len(kept(tmp_path / "out")) == 15
    read_files(tmp_path / "fresh", source, pairs_per_shard=10)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_stopped_reading_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    source = write_parquet(tmp_path / "in.parquet", rows_of(300))
    read_files(tmp_path / "whole", source, pairs_per_shard=50)
    for stop in (
        "pipeline.read.transform.sort_partition",
        "pipeline.read.shuffle.content_fingerprint",
    ):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            patch.setattr(stop, lambda *_: (_ for _ in ()).throw(RuntimeError("stopped")))
            read_files(tmp_path / "out", source, pairs_per_shard=50)
    assert (tmp_path / "out" / "_run" / "read").exists()
    read_files(tmp_path / "out", source, pairs_per_shard=50)
    assert contents(tmp_path / "whole") == {
        name: data for name, data in contents(tmp_path / "out").items()
    }
    assert not (tmp_path / "out" / "_run" / "read").exists()


def test_an_input_of_bad_rows_alone_gives_no_shard_but_keeps_the_reasons(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", [("", "x"), ("", "y")])
    assert read_files(tmp_path / "out", source) == []
    assert reasons(tmp_path / "out") == {"missing_url": 2}
    assert all(RejectReason(row["reason"]) for row in rejected(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.parquet", b"no parquet", "cannot be read as parquet"),
        ("in.csv", b"link_to,words\na,b\n", "link_to, words"),
        ("in.jsonl", b"[]\n", "no JSON objects"),
        ("in.json", b"{cut", "cannot be read as json"),
        ("in.csv.gz", b"no gzip", "cannot be read as csv"),
        ("in.xlsx", b"", "no known format"),
    ],
)
def test_a_bad_file_stops_the_run_before_it_starts(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_files(tmp_path / "out", tmp_path / name)
    assert not (tmp_path / "out" / "_run").exists()


def test_a_missing_file_and_an_empty_glob_are_named(tmp_path):
    for name in ("gone.parquet", "*.parquet"):
        with pytest.raises(ConfigError, match=name.replace("*", r"\*")):
            read_files(tmp_path / "out", tmp_path / name)


def test_a_file_that_breaks_further_on_stops_the_run_and_is_named(tmp_path):
    text = json.dumps([{"url": url, "caption": caption} for url, caption in rows_of(500)])
    (tmp_path / "in.json").write_text(text[:-100])
    with pytest.raises(Exception, match=r"in\.json is damaged"):
        read_files(tmp_path / "out", tmp_path / "in.json")


def test_columns_without_a_header_are_named_by_the_configuration(tmp_path):
    path = tmp_path / "in.tsv"
    path.write_text("a cat\thttps://a.example/1.jpg\n")
    with pytest.raises(ConfigError, match=r"read\.column_names"):
        read_files(tmp_path / "out", path)
    read_files(tmp_path / "out", path, column_names=("caption", "url"))
    assert [row["caption"] for row in kept(tmp_path / "out")] == ["a cat"]
