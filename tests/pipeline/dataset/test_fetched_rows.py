import pyarrow as pa

from pipeline.dataset.fetched_rows import fetched_pairs, fetched_rows
from schemas.shards import DatasetLayout
from tests.curated_tables import Row, write_shards


def test_rows_come_in_the_order_of_the_keys_that_were_asked_for(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    rows = [Row(str(number), 0.0, caption=f"caption {number}") for number in range(9)]
    write_shards(layout, [rows])
    wanted = [rows[place] for place in (7, 2, 5)]
    keys = pa.array([row.key for row in wanted])
    found = fetched_rows(layout, 0, keys, ["caption", "url"])
    assert found.column_names == ["caption", "url"]
    assert found["caption"].to_pylist() == [row.caption for row in wanted]
    pairs = fetched_pairs(layout, 0, keys)
    assert [(pair.key, pair.url, pair.source) for pair in pairs] == [
        (row.key, row.url, row.source) for row in wanted
    ]


def test_no_key_reads_no_table(tmp_path):
    assert fetched_pairs(DatasetLayout(str(tmp_path)), 0, pa.array([], pa.string())) == []
