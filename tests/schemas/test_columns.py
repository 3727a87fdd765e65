from dataclasses import dataclass, replace
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.columns import (
    Column,
    arrow_schema,
    file_metadata,
    read_table,
    table_from_records,
    write_table,
)
from schemas.errors import DatasetError
from schemas.records import PAIR_SCHEMA, REJECTION_SCHEMA, TRAIN_SCHEMA, Pair, pair_key

PAIR = Pair(
    key=pair_key("https://a.example/1.jpg", "a cat"),
    url="https://a.example/1.jpg",
    caption="a cat",
    conversations=None,
    source="in.parquet",
    expected_hash=None,
)


def test_a_field_that_may_be_none_is_a_nullable_column():
    @dataclass
    class Record:
        """Of one column that is always there and one that is not."""

        always: Annotated[int, Column(pa.int32(), "in pixels")]
        sometimes: Annotated[str | None, Column(pa.string(), "if known")]

    schema = arrow_schema(Record)
    assert [field.nullable for field in schema] == [False, True]
    assert schema.field("always").type == pa.int32()
    assert schema.field("always").metadata[b"description"] == b"in pixels"


def test_a_field_without_a_column_is_an_error():
    @dataclass
    class Record:
        """Lacks a column."""

        bare: int

    with pytest.raises(TypeError, match=r"Record\.bare has no Column"):
        arrow_schema(Record)


@pytest.mark.parametrize("schema", [PAIR_SCHEMA, TRAIN_SCHEMA, REJECTION_SCHEMA])
def test_every_column_says_what_it_means(schema):
    assert all(field.metadata[b"description"] for field in schema)


def test_records_come_back_from_a_file_as_they_went_in(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    write_table(table_from_records([PAIR], PAIR_SCHEMA), path, {"fingerprint": "f00d"})
    table = read_table(path, PAIR_SCHEMA)
    assert [Pair(**row) for row in table.to_pylist()] == [PAIR]
    assert file_metadata(pq.read_schema(path))["fingerprint"] == "f00d"
    assert pq.read_schema(path).field("url").metadata[b"description"]


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_table(table_from_records([PAIR], PAIR_SCHEMA), str(tmp_path / name))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_another_schema_version_is_refused_with_advice(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    table = table_from_records([PAIR], PAIR_SCHEMA)
    write_table(table, path, {"schema_version": "999"})
    with pytest.raises(DatasetError, match=r"version 999, this program reads version \d+: use the"):
        read_table(path, PAIR_SCHEMA)


def test_a_file_of_another_program_is_refused(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(DatasetError, match="schema version none"):
        read_table(path, PAIR_SCHEMA)


def test_rows_of_another_record_are_refused(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    write_table(table_from_records([PAIR], PAIR_SCHEMA), path)
    with pytest.raises(DatasetError, match="holds Pair rows, expected TrainSample"):
        read_table(path, TRAIN_SCHEMA)


def test_a_null_where_none_may_be_is_not_written(tmp_path):
    table = table_from_records([replace(PAIR, caption=None)], PAIR_SCHEMA)
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        write_table(table, str(tmp_path / "pairs.parquet"))
