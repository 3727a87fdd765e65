from pathlib import Path

import pytest

from pipeline.deduplicate.plan import plan_search, survey_shard
from pipeline.deduplicate.search import search_task, spill_shard, tasks_of, train_plan
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig
from tests.curated_tables import Row, write_shards
from tests.duplicates import deduplicate, kept, vector


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
def test_a_run_stopped_in_its_search_goes_on_also_with_less_memory(layout, tmp_path):
    rows = [Row(f"{p}", 0.2, vector(p % 200, 0.02 * (p // 200))) for p in range(400)]
    never_stopped = DatasetLayout(str(tmp_path / "other"))
    for folder in (layout, never_stopped):
        shards = write_shards(folder, [rows[::2], rows[1::2]])
    settings = {"cells": 6, "device": "cpu"}
    config = DeduplicateConfig(**settings)
    surveys = [survey_shard(shard, layout) for shard in shards]
    plan = train_plan(plan_search(surveys, layout, config), layout, config)
    for shard in shards:
        spill_shard(shard, layout, config, plan)
    search_task(next(iter(tasks_of(plan))), layout, config, plan)
    edges = Path(plan.folder, "edges")
    before = {path.name: path.stat().st_mtime_ns for path in edges.iterdir()}
    less = DeduplicateConfig(**settings, memory_bytes=1 << 20)
    again = train_plan(plan_search(surveys, layout, less), layout, less)
    assert again == plan
    for task in tasks_of(again):
        search_task(task, layout, less, again)
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in edges.iterdir()}.items()
    deduplicate(layout, shards, cells=6, memory_bytes=1 << 20)
    deduplicate(never_stopped, shards, cells=6)
    for shard in shards:
        ours, theirs = Path(layout.unique(shard)), Path(never_stopped.unique(shard))
        assert ours.read_bytes() == theirs.read_bytes()
    assert len(kept(layout, shards)) == 200
