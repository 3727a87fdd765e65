"""Which row of the table beside a tar belongs to which sample."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.read.tar_table import TarTable, columns_of, read_table, table_beside
from schemas.errors import ConfigError


def no_keys() -> list[str]:
    raise AssertionError("the keys of all samples are asked for where they are not needed")


def test_a_sample_gets_its_own_row_and_the_others_are_left_over() -> None:
    table = TarTable([{"key": "a", "url": 1}, {"key": b"b", "url": 2}], no_keys)
    assert table.values_of("b") == {"key": b"b", "url": 2}
    assert table.values_of("c") == {}
    assert list(table.left_over()) == [({"key": "a", "url": 1}, None)]


def test_rows_of_one_key_count_only_if_they_say_the_same() -> None:
    rows: list[dict[str, Any]] = [
        {"key": "a", "url": 1},
        {"key": "a", "url": 2},
        {"key": "b"},
        {"key": "b"},
    ]
    table = TarTable([*rows, {"key": None}], no_keys)
    assert table.values_of("a") == {}
    assert table.values_of("b") == {"key": "b"}
    left = list(table.left_over())
    assert [row for row, _ in left] == [rows[1], rows[3], {"key": None}]
    assert [problem for _, problem in left] == [
        "the table holds 2 rows of the key 'a'",
        "the table holds 2 rows of the key 'b'",
        "the table's row has no key",
    ]


def test_a_sample_in_a_folder_takes_the_row_of_its_name_if_no_other_has_that_name() -> None:
    rows = [{"key": "a"}, {"key": "b"}, {"key": "deep/c"}]
    table = TarTable(rows, lambda: ["x/a", "x/b", "y/b", "deep/c"])
    assert table.values_of("x/a") == {"key": "a"}
    assert table.values_of("x/b") == {}
    assert table.values_of("deep/c") == {"key": "deep/c"}


def test_a_table_belongs_to_a_tar_if_it_has_keys(tmp_path: Path) -> None:
    tar, path = str(tmp_path / "0.tar"), tmp_path / "0.parquet"
    assert table_beside(tar) is None
    pq.write_table(pa.table({"url": ["u"]}), path)
    assert table_beside(tar) is None
    pq.write_table(pa.table({"url": ["u"], "key": ["a"], "other": [1]}), path)
    assert table_beside(tar) == str(path)
    read = read_table(str(path), ReadConfig(), no_keys)
    assert read.values_of("a") == {"url": "u", "key": "a"}
    path.write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"0\.parquet, beside .*0\.tar, cannot be read"):
        table_beside(tar)
    assert read_table(None, ReadConfig(), no_keys).values_of("a") == {}


def test_hashes_of_what_was_once_downloaded_are_not_verified() -> None:
    columns = columns_of({"url": 0, "caption": 0, "sha256": 0}, ReadConfig(verify_hashes=True))
    assert (columns.url, columns.caption, columns.hashes) == ("url", "caption", ())
