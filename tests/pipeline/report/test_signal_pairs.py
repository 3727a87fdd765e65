"""Which pairs count, of datasets as they are found."""

import pyarrow.parquet as pq
import pytest

from schemas.shards import DatasetLayout
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
