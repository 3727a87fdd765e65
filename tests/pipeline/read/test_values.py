"""Values that are no texts, or not quite."""

import json
import math
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.read.values import decoded, excerpt, text_of
from schemas.errors import RejectReason, SampleRejected
from tests.fetches import picture
from tests.reads import PLAIN, URL, captions, reasons, rows_of, write, write_tar


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


def test_nan_in_the_json_of_a_tar_is_missing(tmp_path: Path) -> None:
    members = []
    for name, text in (("a", '{"caption": NaN}'), ("b", '{"caption": "a cat"}')):
        members += [(f"{name}.jpg", picture(1)), (f"{name}.json", text.encode())]
    rows = rows_of(write_tar(tmp_path / "in.tar", members))
    assert reasons(rows) == ["missing_caption"] and captions(rows) == ["a cat"]


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (Decimal("1.50"), "1.50"),
        (0.5, "0.5"),
        ("ä".encode(), "ä"),
        (math.nan, None),
        (None, None),
    ],
)
def test_texts_and_numbers_are_texts(value: Any, text: str | None) -> None:
    assert text_of(value, "its caption") == text


@pytest.mark.parametrize("value", [True, b"\xff", "\ud800", [], {}])
def test_what_cannot_be_a_text_says_what_it_is(value: Any) -> None:
    with pytest.raises(SampleRejected) as rejected:
        text_of(value, "its caption")
    assert rejected.value.reason is RejectReason.MALFORMED_ROW
    rejected.value.detail.encode()  # what is said can be stored


def test_bytes_are_decoded_at_any_depth() -> None:
    assert decoded([{"a": b"x", "b": [b"y", 1]}, None]) == [{"a": "x", "b": ["y", 1]}, None]
    with pytest.raises(SampleRejected, match="a part of it is not valid UTF-8"):
        decoded({"a": [b"\xff"]})


def test_an_excerpt_is_short_and_can_be_stored() -> None:
    assert excerpt("a\udcff\nb") == repr("a\ufffd\nb")
    assert len(excerpt("x" * 1000)) == 202
