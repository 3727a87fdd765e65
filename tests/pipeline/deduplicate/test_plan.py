from dataclasses import replace

import pytest

from pipeline.deduplicate.plan import (
    SearchPlan,
    ShardSurvey,
    kept_fingerprint,
    plan_search,
    survey_shard,
)
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig
from tests.curated_tables import Row, write_shards
from tests.duplicates import vector

SURVEYS = [ShardSurvey(shard, 3, 512, "a" * 32) for shard in range(2)]


def plan(surveys: list[ShardSurvey], root: object, **settings: float) -> SearchPlan:
    return plan_search(surveys, DatasetLayout(str(root)), DeduplicateConfig(**settings))


def test_a_dataset_from_before_there_were_thumbnails_has_the_fingerprint_that_it_had(tmp_path):
    found = plan(SURVEYS, tmp_path)
    # Source: the version before the second look, asked for the same shards.
    assert found.fingerprint == "88611b16c63f6be46b369577443b9aa0"
    assert kept_fingerprint(found.fingerprint, "a" * 32) == "39ad40a5cefa18b762f332360d06a551"
    assert not found.must_look_alike
    assert plan(SURVEYS, tmp_path, look_difference=20.0).fingerprint == found.fingerprint


def test_where_pictures_are_looked_at_again_how_strictly_is_part_of_the_fingerprint(tmp_path):
    surveys = [replace(survey, has_thumbnails=True) for survey in SURVEYS]
    strict, usual = plan(surveys, tmp_path, look_difference=20.0), plan(surveys, tmp_path)
    without = plan(surveys, tmp_path, look_difference=255.0)
    assert strict.must_look_alike and usual.must_look_alike and not without.must_look_alike
    prints = {strict.fingerprint, usual.fingerprint, plan(SURVEYS, tmp_path).fingerprint}
    assert len(prints) == 3
    assert without.fingerprint == plan(SURVEYS, tmp_path).fingerprint


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_a_search_goes_on_on_another_device_with_other_threads_and_memory(layout):
    shards = write_shards(layout, [[Row("a", 0.1, vector(1)), Row("b", 0.2, vector(2))]])
    surveys = [survey_shard(shard, layout) for shard in shards]
    found = plan_search(surveys, layout, DeduplicateConfig(device="cpu"))
    elsewhere = DeduplicateConfig(device="cuda", threads=7, memory_bytes=1 << 20)
    assert plan_search(surveys, layout, elsewhere) == found
    assert plan_search(surveys, layout, DeduplicateConfig(threshold=0.9)) != found
