"""How far duplicates are from what stayed, over several shards."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.arrow_files import read_batches, write_batches
from pipeline.deduplicate.distances import distances_to_kept, lend_kept
from pipeline.deduplicate.plan import plan_search, survey_shard
from pipeline.deduplicate.search import spill_path
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig
from tests.curated_tables import Row, write_shards
from tests.duplicates import vector

GREY, LIGHT = (np.full((40, 40, 3), value, np.uint8) for value in (100, 110))


@pytest.fixture
def searched(tmp_path):
    """Returns layout and plan of two shards; row 0 of the first one lends to rows 1 and 2."""
    layout = DatasetLayout(str(tmp_path))
    rows = [[Row(f"{shard}{n}", 0.2, vector(n), picture=GREY) for n in range(2)] for shard in "ab"]
    shards = write_shards(layout, rows)
    surveys = [survey_shard(shard, layout) for shard in shards]
    plan = plan_search(surveys, layout, DeduplicateConfig(device="cpu"))
    loans = pa.table(
        {"row": pa.array([1, 2], pa.int64()), "kept_row": pa.array([0, 0], pa.int64())}
    )
    for shard, table in ((0, loans), (1, loans.slice(0, 0))):
        batch = table.combine_chunks().to_batches() or [
            pa.RecordBatch.from_pylist([], table.schema)
        ]
        write_batches(spill_path(plan, "loans", shard), batch, table.schema)
    return layout, plan


def embedding(layout, shard, row):
    stored = pq.read_table(layout.scored(shard))["image_embedding"][row].as_py()
    return np.array(stored, np.float64) / np.linalg.norm(np.array(stored, np.float64))


def test_what_stays_is_lent_to_each_shard_that_has_a_duplicate_of_it(searched):
    layout, plan = searched
    assert [lend_kept(shard, layout, plan) for shard in (0, 1)] == [0, 1]
    lent = spill_path(plan, "kept", 0)
    assert [read_batches(lent, [shard])["row"].to_pylist() for shard in (0, 1)] == [[1], [2]]
    own = embedding(layout, 0, 0)
    found = np.array(read_batches(lent, [1])["image_embedding"][0].as_py(), np.float64)
    assert found @ own / np.linalg.norm(found) == pytest.approx(1, abs=1e-3)
    assert len(read_batches(spill_path(plan, "kept", 1))) == 0


def test_duplicates_are_compared_with_what_another_shard_lent(searched):
    layout, plan = searched
    for shard in (0, 1):
        lend_kept(shard, layout, plan)
    rejected = pa.table({"row": pa.array([0], pa.int64()), "kept_row": pa.array([0], pa.int64())})
    cosines, looks = distances_to_kept(1, layout, plan, rejected)
    expected = embedding(layout, 1, 0) @ embedding(layout, 0, 0)
    assert cosines == pytest.approx([expected], abs=1e-3)
    assert looks.tolist() == [0.0]


def test_no_duplicates_have_no_distances(searched):
    layout, plan = searched
    nothing = pa.table({"row": pa.array([], pa.int64()), "kept_row": pa.array([], pa.int64())})
    cosines, looks = distances_to_kept(0, layout, plan, nothing)
    assert (cosines.shape, looks.shape) == ((0,), (0,))
