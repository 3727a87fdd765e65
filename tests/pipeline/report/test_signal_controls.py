"""What the control of a signal says."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from schemas.columns import SIGNAL_FIELD
from schemas.shards import DatasetLayout
from tests.pipeline.report.test_control import unit
from tests.signal_tables import controls, write_scored


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_levels_by_a_signal_say_how_many_exchanged_pairs_end_in_each(layout, signals):
    rng = np.random.default_rng(2)
    noise = unit(600, 0).astype(np.float32) + rng.normal(size=(600, 8)) * 0.4
    text = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    write_scored(layout, signals, text.astype(np.float16))  # levels are 1 up to a cosine of 0.1
    first, second = controls(layout, "agreement").levels.levels
    assert (first.level, second.level) == (1, 2)
    assert first.exchanged_ratio + second.exchanged_ratio == pytest.approx(1.0)
    assert 0.5 < first.exchanged_ratio < 0.7  # of cosines of strangers in eight dimensions
    assert second.beats_ratio > second.by_chance > 0.5
    assert controls(layout, "negclip").levels.levels[0].exchanged_ratio is None  # levels overlap


def test_a_host_that_a_signal_knows_nothing_of_stands_out(layout, signals):
    text = np.concatenate([unit(600, 0)[:300], unit(300, 1)])
    write_scored(layout, signals, text)
    found = next(one.control for one in controls(layout).signals if one.name == "negclip")
    assert [(group.kind, group.name) for group in found.standing_out] == [
        ("host", "host-1.example")
    ]
    assert found.standing_out[0].beats_ratio == pytest.approx(0.5, abs=0.05)


def test_a_model_that_would_have_to_be_asked_again_says_so(layout, signals):
    write_scored(layout, signals)
    for shard in (0, 1):  # as if the head had been a model: no exchanged values either way
        table = pq.read_table(layout.scored(shard))
        place = table.schema.get_field_index("taste")
        field = table.schema.field("taste")
        made = {**json.loads(field.metadata[SIGNAL_FIELD]), "kind": "itm"}
        told = {**field.metadata, SIGNAL_FIELD: json.dumps(made).encode()}
        table = table.set_column(place, field.with_metadata(told), table["taste"])
        pq.write_table(table, layout.scored(shard))
    taste = next(one for one in controls(layout).signals if one.name == "taste")
    assert taste.control is None and "would have to be asked about exchanged" in taste.no_control
    assert controls(layout).known["taste"].histogram.own.sum() > 0
