"""Inputs that are found and checked before any work."""

import gzip
import re
from pathlib import Path

import pytest

from pipeline.cli import run
from pipeline.config import ReadConfig
from pipeline.read.inputs import check_inputs, refuse_inputs_within
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from tests.reads import captions, plainly, rows_of


@pytest.mark.parametrize(
    "place", ["nosuch://bucket/x.parquet", "/no/such/file.parquet", "http://127.0.0.1:9/x.parquet"]
)
def test_an_input_that_cannot_be_reached_is_one_sentence_and_status_2(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["read", "--pairs", place, "--out", str(tmp_path / "out")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert place in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


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
def test_a_bad_file_stops_the_run_before_it_starts(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        check_inputs([str(tmp_path / name)], ReadConfig())


def test_a_missing_file_and_an_empty_glob_are_named(tmp_path: Path) -> None:
    for name in ("gone.parquet", "*.parquet"):
        with pytest.raises(ConfigError, match=re.escape(name)):
            check_inputs([str(tmp_path / name)], ReadConfig())
    with pytest.raises(ConfigError, match="--pairs names no input"):
        check_inputs([], ReadConfig())


def test_columns_without_a_header_are_named_by_the_configuration(tmp_path: Path) -> None:
    path = plainly(tmp_path / "in.tsv", "a cat\thttps://a.example/1.jpg\n")
    with pytest.raises(ConfigError, match=r"read\.column_names"):
        check_inputs([str(path)], ReadConfig())
    assert captions(rows_of(path, column_names=("caption", "url"))) == ["a cat"]


def test_a_file_knows_whether_its_lines_can_be_found_from_any_byte_on(tmp_path: Path) -> None:
    text = "url,caption\nhttps://a.example/1.jpg,one\n"
    (tmp_path / "a.csv").write_text(text)
    (tmp_path / "b.csv").write_text(text, "utf-16")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.encode()))
    files = check_inputs([str(tmp_path / "*.csv*")], ReadConfig())
    assert [file.name for file in files] == ["a.csv", "b.csv", "c.csv.gz"]
    assert [file.can_be_split for file in files] == [True, False, False]


def test_an_input_changes_its_identity_with_its_content(tmp_path: Path) -> None:
    path = plainly(tmp_path / "in.txt", "https://a.example/1.jpg\tone\n")
    (before,) = check_inputs([str(path)], ReadConfig())
    path.write_text("https://a.example/1.jpg\tone more\n")
    (after,) = check_inputs([str(path)], ReadConfig())
    assert before.identity != after.identity
    assert after.estimated_bytes - before.estimated_bytes == len(" more")


@pytest.mark.parametrize("inner", ["", "pairs/", "data/deep/"])
def test_an_input_in_the_folder_that_the_job_writes_to_is_refused(
    tmp_path: Path, inner: str
) -> None:
    path = tmp_path / "out" / inner / "in.txt"
    path.parent.mkdir(parents=True)
    path.write_text("https://a.example/1.jpg\tone\n")
    layout = DatasetLayout(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="give --out another folder"):
        refuse_inputs_within(layout, [str(path)], ReadConfig())
    refuse_inputs_within(DatasetLayout(str(tmp_path / "else")), [str(path)], ReadConfig())


def test_a_dataset_in_a_folder_of_images_that_it_is_made_of_is_refused(tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path / "images" / "out"))
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="read as an input and would change"):
        refuse_inputs_within(layout, [str(tmp_path / "images")], ReadConfig())
