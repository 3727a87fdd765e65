"""Stored embeddings as arrays."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.dataset.embeddings import embedding_array
from schemas.errors import DatasetError

KIND = pa.list_(pa.float16())


def table_of(*rows):
    values = [None if row is None else np.array(row, np.float16) for row in rows]
    return pa.table({"e": pa.array(values, KIND)})


def test_rows_are_as_they_were_stored_whatever_was_cut_off_before_them():
    table = table_of([9, 9], [0.5, -1], [2, 0.25])
    found = embedding_array(table.slice(1), "e", "a.parquet")
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, -1.0], [2.0, 0.25]]
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert embedding_array(pieces, "e", "a.parquet").tolist()[0] == [9.0, 9.0]


def test_no_rows_have_no_width():
    assert embedding_array(table_of(), "e", "a.parquet").shape == (0, 0)


@pytest.mark.parametrize("rows", [([1, 2], [3]), ([1, 2], None), ([], []), (None,)])
def test_embeddings_that_are_missing_or_not_of_one_width_are_named_by_their_file(rows):
    with pytest.raises(DatasetError, match=r"a\.parquet: e is not of one width"):
        embedding_array(table_of(*rows), "e", "a.parquet")
