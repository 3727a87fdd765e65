from pathlib import Path

import pytest

from pipeline.dataset.derivation import (
    Derivation,
    derivation_path,
    read_derivation,
    refuse_derived,
    write_derivation,
)
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Parent
from schemas.shards import DatasetLayout

SELECTION = Derivation(
    command="select",
    fingerprint="f",
    settings={"where": "width > 3", "seed": 1},
    parents=(Parent(folder="a", manifest_sha256="0" * 64, samples=9, taken=4, config={}),),
    model=None,
    rejected={"not_selected": 5},
)


def test_a_record_comes_back_and_its_balance_adds_up(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    assert read_derivation(layout) is None
    refuse_derived(layout)
    write_derivation(layout, SELECTION)
    found = read_derivation(layout)
    assert found == SELECTION
    counts = found.stages["select"]
    assert (counts.rows_in, counts.kept, counts.rejected) == (9, 4, {"not_selected": 5})
    assert found.where == "width > 3"
    with pytest.raises(ConfigError, match="made from other datasets"):
        refuse_derived(layout)


@pytest.mark.parametrize("text", ["{", "{}", '{"parents": 3}', '{"parents": [], "other": 1}'])
def test_a_damaged_record_is_told(tmp_path, text):
    layout = DatasetLayout(str(tmp_path))
    write_derivation(layout, SELECTION)
    Path(derivation_path(layout)).write_text(text)
    with pytest.raises(DatasetError, match="no record of a derived dataset"):
        read_derivation(layout)
