import numpy as np
import pytest

from pipeline.deduplicate.plan import plan_search, survey_shard
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig
from tests.curated_tables import Row, write_shards


def vector(seed, noise=0.0):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(32)
    base = base / np.linalg.norm(base)
    other = np.random.default_rng(1000 + int(noise * 1e6)).standard_normal(32)
    moved = base + noise * other / np.linalg.norm(other)
    return moved / np.linalg.norm(moved)


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_a_search_goes_on_on_another_device_with_other_threads_and_memory(layout):
    shards = write_shards(layout, [[Row("a", 0.1, vector(1)), Row("b", 0.2, vector(2))]])
    surveys = [survey_shard(shard, layout) for shard in shards]
    plan = plan_search(surveys, layout, DeduplicateConfig(device="cpu"))
    elsewhere = DeduplicateConfig(device="cuda", threads=7, memory_bytes=1 << 20)
    assert plan_search(surveys, layout, elsewhere) == plan
    assert plan_search(surveys, layout, DeduplicateConfig(threshold=0.9)) != plan
