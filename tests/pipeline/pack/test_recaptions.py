"""Captions by a model on their way into train shards."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.pack.recaptions import made_fields, with_recaptions
from schemas.columns import KEPT_FIELD, RECAPTION_FIELD, signal_field, with_kept, write_table
from schemas.errors import DatasetError
from schemas.records import RECAPTIONED_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout
from tests.datasets import fetched_sample


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def write(path, schema, rows, metadata=None):
    columns = {
        field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in schema
    }
    write_table(pa.table(columns, schema=schema), path, metadata)


def test_a_taken_caption_stands_in_its_place_and_signals_of_the_other_go(layout, tmp_path):
    for folder in ("scored", "recaptioned"):
        (tmp_path / folder).mkdir()
    taken, left, unasked = samples = [fetched_sample(number) for number in range(3)]
    signals = [
        signal_field("beauty", "of the picture", json.dumps({"kind": "head"})),
        signal_field("negclip", "of both", json.dumps({"kind": "negclip"})),
    ]
    write(layout.scored(0), with_kept(SCORED_SCHEMA, signals), [])
    told = {"original_score": 0.1, "original_level": 1, "caption_model": "m"}
    rows = [
        {
            "key": sample.key,
            "clip_score": 0.2,
            "alignment_level": 1,
            "is_recaptioned": is_taken,
            "model_caption": None if is_taken is None else "new",
            **({} if is_taken is None else told),
        }
        for sample, is_taken in zip(samples, (True, False, None), strict=True)
    ]
    write(layout.recaptioned(0), RECAPTIONED_SCHEMA, rows, {"recaption": '{"model": "m"}'})
    known = {"beauty": 3.0, "negclip": 0.5, "own": "x"}
    given = [type(sample)(**{**_values(sample), "kept": dict(known)}) for sample in samples]
    found = with_recaptions(layout, 0, given)
    assert [row.caption for row in found] == ["new", left.caption, unasked.caption]
    kept = [row.kept or {} for row in found]
    assert [row["negclip"] for row in kept] == [None, 0.5, 0.5]
    assert [(row["beauty"], row["own"]) for row in kept] == [(3.0, "x")] * 3
    assert [row["is_recaptioned"] for row in kept] == [True, False, None]
    assert kept[0]["original_score"] == np.float32(0.1) and kept[2]["caption_model"] is None
    assert taken.caption != "new"

    fields = {field.name: field.metadata for field in made_fields(layout, 0)}
    assert set(fields) == set(RECAPTIONED_SCHEMA.names) - {"key", "clip_score", "alignment_level"}
    for told_of in fields.values():
        assert told_of[KEPT_FIELD] == b"1" and json.loads(told_of[RECAPTION_FIELD]) == {
            "model": "m"
        }
    write(layout.recaptioned(1), RECAPTIONED_SCHEMA, [])
    with pytest.raises(DatasetError, match="does not say what made its captions"):
        made_fields(layout, 1)


def _values(sample):
    return {name: getattr(sample, name) for name in sample.__dataclass_fields__}
