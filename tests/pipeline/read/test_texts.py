"""Text files that others wrote by the letter of their format, or not quite."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.read.texts import iterate_json, lines_of_range
from schemas.errors import ConfigError
from tests.reads import PLAIN, URL, captions, plainly, reasons, rows_of


def csv_lines(count: int, **bad: str) -> list[str]:
    lines = [f"{URL.format(n)},caption {n}\n" for n in range(count)]
    for place, line in bad.items():
        lines[int(place.removeprefix("at_"))] = line + "\n"
    return ["url,caption\n", *lines]


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


def test_a_json_list_longer_than_the_reading_buffer_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.read.texts.CHUNK_CHARACTERS", 50)
    records = [{"url": URL.format(n), "caption": f"caption {n}"} for n in range(30)]
    path = plainly(tmp_path / "in.json", json.dumps(records))
    assert captions(rows_of(path)) == [record["caption"] for record in records]


@pytest.mark.parametrize(
    ("text", "values", "fault"),
    [
        ('[1, {"a": [2]}, "]"]', [1, {"a": [2]}, "]"], None),
        ('{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}], None),
        ("[[1], [2]]", [[1], [2]], None),
        ("[]", [], None),
        ("[1, 2", [1, 2], "not closed"),
        ("[1, x]", [1], "Expecting value"),
    ],
)
def test_members_of_json_come_one_by_one_up_to_where_it_stops_being_json(
    text: str, values: list[Any], fault: str | None
) -> None:
    found = []
    with nullcontext() if fault is None else pytest.raises(ValueError, match=fault):
        for value in iterate_json(io.StringIO(text)):
            found.append(value)
    assert found == values


def test_each_line_belongs_to_the_byte_range_that_it_begins_in(tmp_path: Path) -> None:
    lines = ["", "a", "häuser", "", "four"]
    path = plainly(tmp_path / "in.txt", "\n".join(lines))
    size = path.stat().st_size
    for cut in range(size + 1):
        parts = [*lines_of_range(str(path), 0, cut), *lines_of_range(str(path), cut, size)]
        assert parts == lines


@pytest.mark.parametrize("ending", ["txt", "tsv", "csv"])
def test_half_a_character_of_utf16_costs_its_own_row_alone(ending: str, tmp_path: Path) -> None:
    mark = "," if ending == "csv" else "\t"
    lines = [f"{url}{mark}caption {n}" for n, url in enumerate(PLAIN)]
    lines[1] += " \ud800"
    bad = [f'{PLAIN[0]},"never closed \ud800'] if ending == "csv" else []
    header = [] if ending == "txt" else [f"url{mark}caption"]
    path = tmp_path / f"in.{ending}"
    text = "\n".join([*header, *lines, *bad, ""])
    path.write_bytes("\ufeff".encode("utf-16-le") + text.encode("utf-16-le", "surrogatepass"))
    rows = rows_of(path)
    assert captions(rows) == ["caption 0", "caption 2"]
    assert reasons(rows) == ["malformed_row"] * (1 + len(bad))
