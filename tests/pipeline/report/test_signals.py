"""What the signals of train tables are like."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.report.signals import read_signals
from schemas.columns import signal_field, with_kept, write_table
from schemas.records import TRAIN_SCHEMA


def blank(rows):
    """Returns the columns of a train table that tell nothing."""
    texts = pa.array(["x"] * rows)
    return {one.name: pa.nulls(rows, one.type) if one.nullable else texts for one in TRAIN_SCHEMA}


def write(path, values, levels, name="taste"):
    """Writes a train table with a signal of these values, None where it is missing."""
    made = {"fingerprint": "f", "model": "head"}
    field = signal_field(name, "how much it pleases", json.dumps(made))
    columns = blank(len(values))
    columns["alignment_level"] = pa.array(levels, pa.int8())
    columns[name] = pa.array(values, pa.float32())
    write_table(pa.table(columns, with_kept(TRAIN_SCHEMA, [field])), str(path))
    return str(path)


def test_a_signal_has_its_range_its_mean_and_the_mean_of_each_level(tmp_path):
    first = write(tmp_path / "0.parquet", [1.0, None, 3.0], [1, 1, 2])
    second = write(tmp_path / "1.parquet", [5.0, -1.0], [2, None])
    (found,) = read_signals([first, second])
    assert (found.name, found.description) == ("taste", "how much it pleases")
    assert found.made == {"fingerprint": "f", "model": "head"}
    assert (found.samples, found.lowest, found.mean, found.highest) == (4, -1.0, 2.0, 5.0)
    assert found.level_means == {"1": 1.0, "2": 4.0}


def test_a_signal_that_no_sample_has_says_nothing(tmp_path):
    (found,) = read_signals([write(tmp_path / "0.parquet", [None, None], [1, 2])])
    assert (found.samples, found.lowest, found.mean, found.highest) == (0, None, None, None)
    assert found.level_means == {}


def test_tables_without_signals_have_none(tmp_path):
    write_table(pa.table(blank(2), TRAIN_SCHEMA), str(tmp_path / "0.parquet"))
    assert read_signals([str(tmp_path / "0.parquet")]) == []
    assert read_signals([]) == []


@pytest.mark.parametrize("rows", [1, 70_000])
def test_the_mean_is_that_of_all_rows_however_many_are_read_at_once(tmp_path, rows):
    values = np.random.default_rng(0).normal(size=rows).astype(np.float32)
    (found,) = read_signals([write(tmp_path / "0.parquet", values, [127] * rows)])
    assert found.mean == pytest.approx(math.fsum(values.tolist()) / rows, abs=1e-12)
    assert list(found.level_means) == ["127"]
