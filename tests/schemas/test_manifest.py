import json

import pytest

from schemas.errors import DatasetError
from schemas.manifest import Manifest, ShardEntry, StageCounts

MANIFEST = Manifest(
    aligngpt_version="0.1.0",
    config={"read": {"url_column": "url"}},
    versions={"pyarrow": "25.0.1"},
    model=None,
    rows_in=3,
    kept=2,
    rejected={"http_status": 1},
    stages={
        "read": StageCounts(rows_in=3, kept=3, rejected={}),
        "fetch": StageCounts(rows_in=3, kept=2, rejected={"http_status": 1}),
        "deduplicate": StageCounts(rows_in=2, kept=2, rejected={}),
    },
    num_levels=2,
    level_edges=[{"level": 1, "lowest_score": 0.1, "highest_score": 0.2, "count": 1}],
    samples_per_shard=10,
    shards=[
        ShardEntry(
            name="000000",
            samples=2,
            tar_bytes=1,
            tar_sha256="0" * 64,
            parquet_bytes=1,
            parquet_sha256="1" * 64,
        )
    ],
)


def test_a_manifest_comes_back_from_json_as_it_went_in():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_the_stages_keep_their_order():
    stages = Manifest.from_json(MANIFEST.to_json()).stages
    assert list(stages) == ["read", "fetch", "deduplicate"]


def test_another_version_is_refused():
    values = {**json.loads(MANIFEST.to_json()), "schema_version": 999}
    with pytest.raises(DatasetError, match="schema version 999"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "[]", "{cut"])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(DatasetError):
        Manifest.from_json(text)
