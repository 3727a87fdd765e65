"""Which columns of the inputs' own, signals and captions a dataset made from others has."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.select.choice import Source
from pipeline.select.kept import kept_of_parents
from schemas.columns import KEPT_FIELD, RECAPTION_FIELD, SIGNAL_FIELD, signal_field
from schemas.errors import ConfigError


def with_column(parent: Path, root: Path, field: pa.Field) -> Source:
    """Returns a copy of a dataset whose train tables have one more column, all null."""
    shutil.copytree(parent, root)
    for path in (root / "train").glob("*.parquet"):
        table = pq.read_table(path)
        nothing = pa.nulls(len(table), field.type)
        pq.write_table(table.append_column(field, nothing), path)
    return Source.at(str(root))


def made(name: str = "taste", **told: str) -> pa.Field:
    return signal_field(name, "a signal", json.dumps({"kind": "head", **told}))


def test_a_signal_of_two_heads_under_one_name_is_refused(parent, tmp_path):
    one = with_column(parent, tmp_path / "a", made(argument="/a/taste.safetensors", sha256="1"))
    other = with_column(parent, tmp_path / "b", made(argument="/b/taste.safetensors", sha256="2"))
    match = "by head:/a/taste.safetensors in one dataset, by head:/b/taste.* differ in sha256"
    with pytest.raises(ConfigError, match=match):
        kept_of_parents([one, other])
    own = pa.field("taste", pa.float32(), metadata={KEPT_FIELD: b"1"})
    with pytest.raises(ConfigError, match="by the input itself in another"):
        kept_of_parents([one, with_column(parent, tmp_path / "c", own)])


def test_what_made_a_column_is_told_of_all_datasets(parent, tmp_path):
    told = [{"argument": f"/{name}/x", "reference": name, "sha256": "1"} for name in "aba"]
    sources = [
        with_column(parent, tmp_path / f"signal {number}", made(**one))
        for number, one in enumerate(told)
    ]
    fields, everywhere = kept_of_parents(sources)
    assert fields == everywhere
    found = json.loads(fields[0].metadata[SIGNAL_FIELD])
    assert found == {
        "kind": "head",
        "argument": "/a/x and /b/x",
        "reference": "a and b",
        "sha256": "1",
    }
    captions = [
        pa.field(
            "model_caption",
            pa.string(),
            metadata={KEPT_FIELD: b"1", RECAPTION_FIELD: json.dumps({"model": name}).encode()},
        )
        for name in ("one", "two")
    ]
    sources = [
        with_column(parent, tmp_path / f"captions {number}", field)
        for number, field in enumerate(captions)
    ]
    (field,), _ = kept_of_parents([*sources, Source.at(str(parent))])
    assert json.loads(field.metadata[RECAPTION_FIELD]) == {"model": "one and two"}
