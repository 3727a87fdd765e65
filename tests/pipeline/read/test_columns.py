"""Which column holds what."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.read.columns import columns_of_record, map_columns, usual_columns
from pipeline.read.inputs import check_inputs
from schemas.errors import ConfigError
from tests.reads import PLAIN, TEXTS, captions, reasons, rows_of, write


@pytest.mark.parametrize("name", ["in.csv", "in.tsv", "in.parquet"])
def test_two_columns_of_one_name_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "in.parquet":
        pq.write_table(pa.table([[PLAIN[0]], ["a"], ["b"]], ["url", "caption", "caption"]), path)
    else:
        mark = "," if name == "in.csv" else "\t"
        path.write_text(f"{mark.join(['url', 'caption', 'caption'])}\n{PLAIN[0]}{mark}a{mark}b\n")
    with pytest.raises(ConfigError, match=r"has 2 columns of the name 'caption'.* rename or drop"):
        check_inputs([str(path)], ReadConfig())


def test_two_columns_of_one_name_that_nobody_reads_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    columns = [[PLAIN[0]], ["a"], [1], [2]]
    pq.write_table(pa.table(columns, ["url", "caption", "x", "x"]), path)
    assert captions(rows_of(path)) == ["a"]


def test_hashes_are_verified_on_request_alone(tmp_path: Path) -> None:
    hashes = pa.array([b"\x01" * 16, b"\x02" * 16, None], pa.binary(16))
    path = write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=pa.array(TEXTS), md5=hashes)
    assert [row["expected_hash"] for row in rows_of(path)] == [None] * 3
    asked = [row["expected_hash"] for row in rows_of(path, verify_hashes=True)]
    assert asked == ["md5:" + "01" * 16, "md5:" + "02" * 16, None]
    words = write(
        tmp_path / "w.parquet",
        url=pa.array(PLAIN),
        caption=pa.array(TEXTS),
        md5=pa.array(["no", "", "0" * 32]),
    )
    assert reasons(rows_of(words)) == []
    assert reasons(rows_of(words, verify_hashes=True)) == ["malformed_row"]


@pytest.mark.parametrize(
    ("found", "url", "caption"),
    [
        (["URL", "TEXT"], "URL", "TEXT"),
        (["src", "image_url", "alt", "caption"], "image_url", "caption"),
        ([" Link ", "Title"], " Link ", "Title"),
        (["url", "URL", "caption"], "url", "caption"),
        (["image", "text"], None, "text"),
    ],
)
def test_usual_names_are_found_in_their_order_and_in_any_case(
    found: list[str], url: str | None, caption: str
) -> None:
    columns = usual_columns(found, ReadConfig())
    assert (columns.url, columns.caption) == (url, caption)


def test_a_name_that_was_asked_for_is_the_only_one_looked_for() -> None:
    config = ReadConfig(url_column="where", caption_column="what")
    columns = usual_columns(["url", "caption", "What"], config)
    assert (columns.url, columns.caption) == (None, "What")
    with pytest.raises(ConfigError, match="has no column 'where': it has url, caption, What; set"):
        map_columns("in.csv", ["url", "caption", "What"], config, is_certain=True)
    with pytest.raises(ConfigError, match=r"in\.csv is empty"):
        map_columns("in.csv", [], config, is_certain=False)


def test_paths_name_images_beside_conversations_and_where_a_folder_is_given() -> None:
    assert usual_columns(["image", "conversations"], ReadConfig()).url == "image"
    assert usual_columns(["image", "text"], ReadConfig(image_folder="x")).url == "image"


def test_a_record_has_its_own_columns_where_it_lacks_those_of_the_file() -> None:
    config = ReadConfig()
    file = usual_columns(["url", "caption"], config)
    assert columns_of_record({"url": "u", "caption": "c", "text": "t"}, file, config) is file
    other = columns_of_record({"link": "u", "caption": None, "text": "t"}, file, config)
    assert (other.url, other.caption) == ("link", "text")
    talk = columns_of_record({"image": "i", "messages": []}, file, config)
    assert (talk.url, talk.conversations) == ("image", "messages")
    assert columns_of_record(["no", "record"], file, config) is file
