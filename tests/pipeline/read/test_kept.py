"""Columns of the input that go along as they are, from every format and with their types."""

import datetime
import json
import tarfile
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import ReadConfig
from pipeline.read.inputs import check_inputs
from schemas.columns import kept_fields
from schemas.errors import ConfigError
from tests.fetches import picture
from tests.pipeline.read.test_transform import read_files

URLS = [f"https://example.com/{n}.jpg" for n in range(4)]
PAIRS = {"url": URLS, "caption": [f"picture {n}" for n in range(4)]}

Kept = dict[str, dict[str, Any]]


def read(root: Path, *files: Path, keep: tuple[str, ...], **settings: Any) -> tuple[Kept, Kept]:
    """Returns caption to what was kept of its row, and column to its type."""
    read_files(root, *files, keep_columns=keep, pairs_per_shard=3, **settings)
    rows, schemas = [], []
    for path in sorted((root / "pairs").glob("*.parquet")):
        table = pq.read_table(path)
        rows += table.to_pylist()
        schemas.append({field.name: field.type for field in kept_fields(table.schema)})
    assert all(schema == schemas[0] for schema in schemas)  # one type in all shards
    types = schemas[0]
    return {row["caption"]: {name: row[name] for name in types} for row in rows}, types


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs_with(**columns: list[Any]) -> list[dict[str, Any]]:
    table = {**PAIRS, **columns}
    return [{name: values[n] for name, values in table.items()} for n in range(4)]


TYPED = {
    "uid": pa.array(["a", "b", None, "dé"]),
    "score": pa.array([0.1, None, 1.5, float("nan")], pa.float32()),
    "size": pa.array([1, 2, None, 4], pa.uint16()),
    "safe": pa.array([True, False, None, True]),
    "boxes": pa.array([[[0.5, 1.0]], [], None, [[1.0], []]], pa.list_(pa.list_(pa.float32()))),
    "exif": pa.array([{"iso": 1, "lens": "x"}] * 3 + [None]),
    "taken": pa.array([1, 2, None, 123456789], pa.timestamp("ns", tz="Europe/Berlin")),
    "day": pa.array([datetime.date(2020, 1, 2)] * 4),
    "price": pa.array([Decimal("1.50"), None, Decimal("-3.25"), Decimal("0.00")]),
    "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
    "raw": pa.array([b"bytes", b"are", b"text", None]),
}


def test_columns_of_parquet_keep_their_types_and_values(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({**PAIRS, **TYPED}), path)
    rows, types = read(tmp_path / "out", path, keep=tuple(TYPED))
    texts = {"kind": pa.string(), "raw": pa.string()}
    assert types == {name: texts.get(name, column.type) for name, column in TYPED.items()}
    wanted = pa.table(TYPED).to_pylist()
    wanted[3]["score"] = None  # NaN is missing
    for row in wanted:
        row["raw"] = row["raw"] and row["raw"].decode()
    assert [rows[f"picture {n}"] for n in range(4)] == wanted


def test_fields_of_csv_are_numbers_where_they_lose_nothing_as_such(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(
        "url,caption,whole,number,code,text\n"
        f"{URLS[0]},picture 0,1,1,007,a\n{URLS[1]},picture 1,-2,2.5e3,12,\n"
        f"{URLS[2]},picture 2,,nan,3,NaN\n"
    )
    rows, types = read(tmp_path / "out", path, keep=("whole", "number", "code", "text"))
    assert types == {
        "whole": pa.int64(),
        "number": pa.float64(),
        "code": pa.string(),
        "text": pa.string(),
    }
    assert rows["picture 0"] == {"whole": 1, "number": 1.0, "code": "007", "text": "a"}
    assert rows["picture 1"] == {"whole": -2, "number": 2500.0, "code": "12", "text": None}
    assert rows["picture 2"] == {"whole": None, "number": None, "code": "3", "text": "NaN"}


@pytest.mark.slow
def test_the_type_of_a_json_column_is_that_of_all_its_rows_wherever_they_stand(tmp_path):
    late = [{"url": f"https://x.example/{n}", "caption": f"c{n}", "n": n} for n in range(150)]
    late[140] |= {"n": 0.5, "mixed": 1, "tags": ["a"]}
    late[141] |= {"mixed": "one", "tags": [], "more": {"a": [1]}}
    late[142] |= {"mixed": [1, 2], "n": float("nan")}
    path = write_lines(tmp_path / "pairs.jsonl", late)
    rows, types = read(tmp_path / "out", path, keep=("n", "mixed", "tags", "more", "none"))
    assert types == {
        "n": pa.float64(),
        "mixed": pa.string(),
        "tags": pa.list_(pa.string()),
        "more": pa.string(),
        "none": pa.string(),
    }
    assert rows["c140"] == {"n": 0.5, "mixed": "1", "tags": ["a"], "more": None, "none": None}
    assert rows["c141"]["mixed"] == "one" and rows["c141"]["more"] == '{"a":[1]}'
    assert rows["c142"]["mixed"] == "[1,2]" and rows["c142"]["n"] is None
    assert json.loads((tmp_path / "out/_run/read.json").read_text())["unseen_columns"] == ["none"]


def test_files_that_differ_are_joined_and_a_column_can_be_renamed(tmp_path):
    table = pa.table({"url": URLS[:1], "caption": ["a"], "WIDTH": pa.array([5], pa.int32())})
    pq.write_table(table, tmp_path / "a.parquet")
    write_lines(
        tmp_path / "b.jsonl", [{"url": URLS[1], "caption": "b", "width": 2.5}, {"url": URLS[2]}]
    )
    (tmp_path / "c.csv").write_text(f"url,caption,width\n{URLS[3]},c,7\n")
    files = [tmp_path / name for name in ("a.parquet", "b.jsonl", "c.csv")]
    rows, types = read(tmp_path / "out", *files, keep=("width=told",))
    assert types == {"told": pa.float64()}
    assert rows == {"a": {"told": 5.0}, "b": {"told": 2.5}, "c": {"told": 7.0}}


@pytest.mark.slow
def test_what_is_kept_decides_the_fingerprint_and_the_same_rows_give_the_same_bytes(tmp_path):
    def bytes_of(name: str, last: int, split: bool) -> bytes:
        rows = pairs_with(n=[1, 2, 3, last])
        parts = [rows[:1], rows[1:]] if split else [rows[::-1]]
        folder = tmp_path / name
        folder.mkdir()
        files = [write_lines(folder / f"{n}.jsonl", part) for n, part in enumerate(parts)]
        read(folder / "out", *files, keep=("n",))
        table = pq.read_table(folder / "out/pairs/00000.parquet")
        return str((table.drop_columns("source").to_pydict(), table.schema.types)).encode()

    assert bytes_of("a", 4, split=False) == bytes_of("b", 4, split=True)
    assert bytes_of("a2", 4, split=False) != bytes_of("c", 5, split=False)


def test_members_and_the_table_beside_them_tell_what_is_kept_of_a_tar(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, data in (
            ("0.jpg", picture(seed=1)),
            ("0.json", b'{"caption": "one", "license": "CC0"}'),
            ("1.jpg", picture(seed=2)),
            ("1.txt", b"two"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))
    columns = {"key": ["0", "1"], "caption": ["x", "two"], "NSFW": ["no", None], "sim": [0.5, 1.0]}
    pq.write_table(pa.table(columns), tmp_path / "00000.parquet")
    rows, types = read(tmp_path / "out", tmp_path / "00000.tar", keep=("nsfw", "sim", "license"))
    assert types == {"nsfw": pa.string(), "sim": pa.float64(), "license": pa.string()}
    assert rows == {
        "one": {"nsfw": "no", "sim": 0.5, "license": "CC0"},
        "two": {"nsfw": None, "sim": 1.0, "license": None},
    }


def test_tables_and_json_files_of_an_image_folder_tell_what_is_kept(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n, name in enumerate(("a", "b")):
        (folder / f"{name}.jpg").write_bytes(picture(seed=n))
    (folder / "metadata.csv").write_text("file_name,text,stars\na.jpg,an a,3\nb.jpg,,4\n")
    (folder / "b.json").write_text('{"caption": "a b", "by": ["me"]}')
    rows, types = read(tmp_path / "out", folder, keep=("stars", "by"))
    assert types == {"stars": pa.string(), "by": pa.list_(pa.string())}
    assert rows == {"an a": {"stars": "3", "by": None}, "a b": {"stars": "4", "by": ["me"]}}


def test_a_column_that_no_file_has_and_one_that_cannot_be_kept_stop_before_work(tmp_path):
    path = tmp_path / "pairs.parquet"
    columns = {**PAIRS, "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64()))}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ConfigError, match=r"'nsfw', which no input has: .* has url, caption, map"):
        check_inputs([str(path)], ReadConfig(keep_columns=("nsfw",)))
    with pytest.raises(ConfigError, match=r"column 'map' is of the type map"):
        check_inputs([str(path)], ReadConfig(keep_columns=("map",)))
