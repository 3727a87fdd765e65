"""Inputs that others wrote by the letter of their format, or not quite."""

import csv
import gzip
import io
import json
import math
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import run
from pipeline.config import ReadConfig
from pipeline.read.formats import read_split
from pipeline.read.inputs import check_inputs
from pipeline.read.rows import clean_rows
from pipeline.read.splits import plan_splits
from schemas.errors import ConfigError
from tests.fetches import picture

URL = "https://example.com/{}.jpg"


def rows_of(path: Path, **settings: Any) -> list[dict[str, Any]]:
    """Returns what becomes of the rows of an input."""
    config = ReadConfig(**settings)
    rows: list[dict[str, Any]] = []
    for split in plan_splits(check_inputs([str(path)], config)):
        for raw in read_split(split, config):
            rows += clean_rows(raw, split.file.name, split.file.image_folder).to_pylist()
    return rows


def captions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["caption"] for row in rows if row["reason"] is None]


def reasons(rows: list[dict[str, Any]]) -> list[str]:
    return [row["reason"] for row in rows if row["reason"] is not None]


def write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


TEXTS = ["a cät", "ein Hund", "犬"]

PLAIN = [URL.format(n) for n in range(3)]


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


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string()])
def test_what_is_not_utf8_is_a_malformed_row_and_the_others_are_kept(
    kind: pa.DataType, tmp_path: Path
) -> None:
    bad = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    array = bad if kind != pa.string() else pa.Array.from_buffers(kind, 3, bad.buffers())
    rows = rows_of(write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=array.cast(kind)))
    assert captions(rows) == ["good", "fine"]
    assert reasons(rows) == ["malformed_row"]
    assert "\\xe9" in next(row["detail"] for row in rows if row["reason"])


@pytest.mark.parametrize("kind", [pa.list_(pa.binary()), pa.large_list(pa.large_binary())])
def test_lists_of_bytes_are_several_captions(kind: pa.DataType, tmp_path: Path) -> None:
    lists = pa.array([[b"a", "ä".encode()], [b"b"], [b"\xff", b"c"]], kind)
    rows = rows_of(write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=lists))
    assert [row["captions"] for row in rows][:2] == ['["a","ä"]', None]
    assert captions(rows) == ["a", "b"]
    assert reasons(rows) == ["malformed_row"]


def test_conversations_of_bytes_are_turns(tmp_path: Path) -> None:
    turns = [{"from": b"human", "value": b"<image> what?"}, {"from": b"gpt", "value": b"a cat"}]
    kind = pa.list_(pa.struct([("from", pa.binary()), ("value", pa.binary())]))
    path = write(
        tmp_path / "in.parquet",
        image=pa.array([b"cat.jpg"]),
        conversations=pa.array([turns], kind),
    )
    (row,) = rows_of(path)
    assert json.loads(row["conversations"])[1] == {"from": "gpt", "value": "a cat"}


def json_lines(path: Path, values: list[Any]) -> Path:
    path.write_text(
        "".join(f'{{"url": "{URL.format(n)}", "caption": {v}}}\n' for n, v in enumerate(values))
    )
    return path


def test_numbers_that_are_none_are_missing_captions(tmp_path: Path) -> None:
    values = ["NaN", "Infinity", "-Infinity", "1e400", "[NaN]", "[NaN, null]", "null", '"ok"', "7"]
    values += ['[NaN, "one", 1e999, "two"]', "true", "{}"]
    rows = rows_of(json_lines(tmp_path / "in.jsonl", values))
    assert reasons(rows) == ["missing_caption"] * 7 + ["malformed_row"] * 2
    assert captions(rows) == ["ok", "7", "one"]
    assert rows[9]["captions"] == '["one","two"]'


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.float16()])
def test_missing_captions_of_a_column_of_floats_are_missing(
    kind: pa.DataType, tmp_path: Path
) -> None:
    import numpy as np

    array = pa.array(np.array([1.5, math.nan, math.inf], kind.to_pandas_dtype()), kind)
    rows = rows_of(write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=array))
    assert captions(rows) == ["1.5"]
    assert reasons(rows) == ["missing_caption"] * 2


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("s"), pa.bool_(), pa.time32("s")])
def test_what_is_neither_text_nor_number_is_never_stored_as_its_representation(
    kind: pa.DataType, tmp_path: Path
) -> None:
    values = {pa.bool_(): [True] * 3, pa.timestamp("s"): [datetime(2020, 1, 1)] * 3}
    array = pa.array(values.get(kind, [0, 1, 0]), kind)
    rows = rows_of(write(tmp_path / "in.parquet", url=pa.array(PLAIN), caption=array))
    assert reasons(rows) == ["malformed_row"] * 3


def tar_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_nan_in_the_json_of_a_tar_is_missing(tmp_path: Path) -> None:
    members = []
    for name, text in (("a", '{"caption": NaN}'), ("b", '{"caption": "a cat"}')):
        members += [(f"{name}.jpg", picture(1)), (f"{name}.json", text.encode())]
    rows = rows_of(tar_of(tmp_path / "in.tar", *members))
    assert reasons(rows) == ["missing_caption"] and captions(rows) == ["a cat"]


# Quotes that are never closed


def csv_lines(count: int, **bad: str) -> list[str]:
    lines = [f"{URL.format(n)},caption {n}\n" for n in range(count)]
    for place, line in bad.items():
        lines[int(place.removeprefix("at_"))] = line + "\n"
    return ["url,caption\n", *lines]


def plainly(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def gzipped(path: Path, text: str) -> Path:
    path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(text.encode()))
    return path


OPEN = f'{URL.format("x")},"never closed caption'


@pytest.mark.parametrize("write_text", [plainly, gzipped])
@pytest.mark.parametrize(
    ("bad", "lost"),
    [
        ({"at_30": OPEN}, 1),
        ({"at_30": OPEN, "at_199": OPEN}, 2),
        ({"at_30": OPEN, "at_50": f'{URL.format(50)},"closed, and well"'}, 1),
        ({"at_30": OPEN, "at_50": f'"{URL.format(50)}","closed, and well"'}, 1),
        ({"at_30": OPEN, "at_50": f'{URL.format(50)},", closed"'}, 1),
        ({"at_199": OPEN}, 1),
        ({"at_0": f'"{URL.format(0)},caption 0'}, 1),
        ({"at_30": f'{URL.format("x")},"{"long " * 300_000}'}, 1),
    ],
    ids=["one", "two", "closed", "quoted", "comma", "last", "first", "huge"],
)
def test_a_quote_that_is_never_closed_costs_its_own_line_alone(
    bad: dict[str, str], lost: int, write_text: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    path = write_text(tmp_path / "in.csv", "".join(csv_lines(200, **bad)))
    rows = rows_of(path)
    assert len(rows) == 200
    assert reasons(rows) == ["malformed_row"] * lost
    assert all("\n" not in caption for caption in captions(rows))
    first = next(row["detail"] for row in rows if row["reason"])
    assert "line " in first


def test_captions_of_several_lines_stay_what_they_are(tmp_path: Path) -> None:
    texts = ["one\ntwo\n", 'he said "no"\nand left', "a\r\nb", "\n" * 300 + "deep", "", "plain"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([("url", "caption"), *((URL.format(n), t) for n, t in enumerate(texts))])
    path = tmp_path / "in.csv"
    path.write_bytes(out.getvalue().encode())
    rows = rows_of(path)
    assert captions(rows) == [text.strip() for text in texts if text]
    assert reasons(rows) == ["missing_caption"]


def test_a_tsv_has_a_row_on_each_line_whatever_its_quotes(tmp_path: Path) -> None:
    lines = [f"{URL.format(n)}\tcaption {n}\n" for n in range(20)]
    lines[3] = f'{URL.format(3)}\t"never closed\n'
    path = plainly(tmp_path / "in.tsv", "url\tcaption\n" + "".join(lines))
    assert len(captions(rows_of(path))) == 20


# Columns


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


# Names of members, and places


@pytest.mark.parametrize("names", [["photo.v1.0.jpg"], ["a.0.jpg", "a.1.jpg"], ["x.y.png"]])
def test_keys_with_dots_are_told_of(names: list[str], tmp_path: Path) -> None:
    members = [(name, picture(1)) for name in names] + [("photo.txt", b"a photo")]
    path = tar_of(tmp_path / "in.tar", *members)
    with pytest.raises(ConfigError, match=r"A key ends at the first dot of a name.*rename"):
        check_inputs([str(path)], ReadConfig())


def test_members_that_do_not_stand_together_are_told_of(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "in.tar",
        ("a.jpg", picture(1)), ("a.txt", b"a"), ("b.txt", b"b"), ("c.v1.jpg", picture(3)),
        ("c.txt", b"c"), ("b.jpg", picture(2)),
    )  # fmt: skip
    said = [row["detail"] for row in rows_of(path) if row["reason"] == "missing_image"]
    assert any("one after the other in a tar" in detail for detail in said)
    assert any("a key ends at the first dot" in detail for detail in said)


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


TEXT_FILES = {
    "csv": "url,caption\n{url},ein Bär\n",
    "tsv": "url\tcaption\n{url}\tein Bär\n",
    "jsonl": '{{"url": "{url}", "caption": "ein Bär"}}\n',
    "json": '[{{"url": "{url}", "caption": "ein Bär"}}]\n',
    "txt": "{url}\tein Bär\n",
}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", [*TEXT_FILES, "csv.gz"])
def test_texts_of_two_or_four_bytes_a_character_are_read(
    ending: str, encoding: str, tmp_path: Path
) -> None:
    text = TEXT_FILES[ending.removesuffix(".gz")].format(url=PLAIN[0])
    data = ("\ufeff" + text if encoding == "utf-16-be" else text).encode(encoding)
    path = tmp_path / f"pairs.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    assert captions(rows_of(path)) == ["ein Bär"]


@pytest.mark.parametrize("ending", TEXT_FILES)
def test_utf16_that_does_not_say_so_is_refused_by_that_name(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{ending}"
    path.write_bytes(TEXT_FILES[ending].format(url=PLAIN[0]).encode("utf-16-le"))
    with pytest.raises(ConfigError, match="UTF-16 without a byte order mark: save it as UTF-8"):
        rows_of(path)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_without_commas_is_separated_by_what_else_its_first_line_has(
    delimiter: str, tmp_path: Path
) -> None:
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("url", "caption"), (PLAIN[0], f'one, "two"{delimiter}\nthree')])
        file.write(f'{PLAIN[1]}{delimiter}"never closed\n{PLAIN[2]}{delimiter}next\n')
    rows = rows_of(path)
    assert captions(rows) == [f'one, "two"{delimiter}\nthree', "next"]
    assert reasons(rows) == ["malformed_row"]


def test_nul_is_left_out_of_texts_and_is_refused_in_urls(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "what\0?"}, {"from": "gpt", "value": "a\0 cat"}]
    values = [
        {"url": PLAIN[0], "caption": "a\0 cat\0\0"},
        {"url": PLAIN[0] + "\0", "caption": "x"},
        {"url": PLAIN[1], "caption": ["a\0 dog", "a dog", "two"]},
        {"url": PLAIN[2], "caption": "\0"},
        {"conversations": turns},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    rows = rows_of(path)
    assert captions(rows) == ["a cat", "a dog", "a cat"]
    assert sorted(reasons(rows)) == ["bad_url", "missing_caption"]
    assert rows[2]["captions"] == '["a dog","two"]'
    assert "\\u0000" not in rows[-1]["conversations"]
    table = write(tmp_path / "pairs.parquet", url=pa.array(PLAIN), caption=pa.array(["a\0"] * 3))
    assert captions(rows_of(table)) == ["a"] * 3


def test_tables_of_image_folders_may_spell_paths_as_windows_does(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("sub/a.jpg", "b.jpg", "c\\d.jpg"):
        (folder / name).write_bytes(picture(1))
    lines = ["file_name,text", r"sub\a.jpg,an a", r".\b.jpg,a b", r"c\d.jpg,as it is"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    assert sorted(captions(rows_of(folder))) == ["a b", "an a", "as it is"]
