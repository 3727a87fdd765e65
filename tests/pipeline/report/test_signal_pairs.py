"""Which pairs count, of datasets as they are found."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.score.signals import add_signals
from schemas.shards import DatasetLayout
from scoring.config import ScoreConfig
from tests.pipeline.report.test_control import unit, urls, write
from tests.signal_tables import add, controls, write_scored


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_a_dataset_made_before_there_were_controls_says_so_and_gets_them(layout, signals):
    write_scored(layout, signals)
    whole = pq.read_table(layout.scored(0))
    for shard in (0, 1):
        table = pq.read_table(layout.scored(shard))
        before = table.select([name for name in table.column_names if " " not in name])
        pq.write_table(before, layout.scored(shard))
    for one in controls(layout, "rank_mean:clip_score,negclip").signals:
        assert one.control is None and one.no_control
    add(layout, signals)
    assert pq.read_table(layout.scored(0)).equals(whole)  # to the digit
    assert controls(layout).levels.beats_ratio > 0.99


def test_after_a_purge_the_exchanged_pairs_that_are_left_still_count(layout, signals):
    write_scored(layout, signals)
    table = pq.read_table(layout.scored(0))
    pq.write_table(table.slice(40), layout.scored(0))
    found = controls(layout, "rank_mean:clip_score,negclip")
    by_name = {one.name: one for one in found.signals}
    assert by_name["negclip"].control.pairs == 560
    assert found.levels.pairs == 300  # whose partners in the shard are no longer known, do not


def test_a_pair_alone_and_pairs_without_embeddings_say_why_there_is_no_control(layout, signals):
    one = unit(1, 0)
    write(layout, 0, one, one, urls("a.example", 1))
    add_signals(0, layout, ScoreConfig(signals=("negclip",)), [0])
    found = controls(layout, "rank_mean:clip_score,negclip")
    assert "there are no other pairs" in found.signals[0].no_control
    assert "there are no other pairs" in found.no_levels
    table = pq.read_table(layout.scored(0))
    for name in ("image_embedding", "text_embedding"):  # as of score.keep_embeddings = false
        place = table.schema.get_field_index(name)
        nothing = pa.nulls(1, table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), nothing)
    pq.write_table(table, layout.scored(0))
    assert "without stored embeddings" in controls(layout).signals[0].no_control


def test_a_shard_without_pairs_has_the_columns_and_nothing_to_say(layout):
    nothing = unit(1, 0)[:0]
    write(layout, 0, nothing, nothing, [])
    add_signals(0, layout, ScoreConfig(signals=("negclip", "neighbours")), [0])
    assert pq.read_schema(layout.scored(0)).names[-2:] == [
        "negclip exchanged",
        "neighbours exchanged",
    ]
    assert controls(layout).levels is None
