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
from schemas.errors import RejectReason
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


@pytest.mark.slow
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


def test_what_is_read_is_not_read_again(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", rows_of(30))
    read_files(tmp_path / "out", source, pairs_per_shard=10)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    assert read_files(tmp_path / "out", source, pairs_per_shard=10) == [0, 1, 2]
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_file_that_breaks_further_on_stops_the_run_and_is_named(tmp_path):
    text = json.dumps([{"url": url, "caption": caption} for url, caption in rows_of(500)])
    (tmp_path / "in.json").write_text(text[:-100])
    with pytest.raises(Exception, match=r"in\.json is damaged"):
        read_files(tmp_path / "out", tmp_path / "in.json")
