"""Parts of inputs that are read side by side."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.read.inputs import check_inputs
from pipeline.read.splits import plan_splits
from tests.reads import URL, captions, reasons, rows_of


def lines_of(path: Path, count: int) -> Path:
    path.write_text("".join(f"{URL.format(n)}\tpicture {n}\n" for n in range(count)))
    return path


def test_lines_are_read_once_whatever_the_byte_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines_of(tmp_path / "in.txt", 40)
    for size in (1, 37, 10_000):
        monkeypatch.setattr("pipeline.read.splits.SPLIT_BYTES", size)
        rows = rows_of(path)
        assert captions(rows) == [f"picture {n}" for n in range(40)]
        assert reasons(rows) == []


def test_byte_ranges_cover_a_file_of_lines_and_other_texts_are_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = lines_of(tmp_path / "in.txt", 9).stat().st_size
    (tmp_path / "in.csv").write_text("url,caption\nhttps://a.example/1.jpg,one\n")
    monkeypatch.setattr("pipeline.read.splits.SPLIT_BYTES", 100)
    splits = plan_splits(check_inputs([str(tmp_path / "in.*")], ReadConfig()))
    assert [split.number for split in splits] == list(range(len(splits)))
    whole, *ranges = [(split.start, split.stop) for split in splits]
    assert whole == (0, 1)
    starts = [*range(0, size, 100)]
    assert ranges == list(zip(starts, [*starts[1:], size], strict=True))


def test_row_groups_are_gathered_until_they_are_large_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [URL.format(n) for n in range(50)]
    table = pa.table({"url": urls, "caption": [f"picture {n}" for n in range(50)]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=10)
    (file,) = check_inputs([str(tmp_path / "in.parquet")], ReadConfig())
    two_groups = file.row_groups[0][1] + file.row_groups[1][1]
    monkeypatch.setattr("pipeline.read.splits.SPLIT_BYTES", two_groups)
    parts = [(split.start, split.stop, split.rows) for split in plan_splits([file])]
    assert parts == [(0, 2, 20), (2, 4, 20), (4, 5, 10)]
