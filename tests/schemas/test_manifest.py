import dataclasses
import json

import pytest

from schemas.errors import DatasetError
from schemas.manifest import (
    Manifest,
    RecaptionSummary,
    ScoreControl,
    ShardEntry,
    SignalSummary,
    StageCounts,
)

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


def control(signal: str, warning: str | None) -> ScoreControl:
    return ScoreControl(
        signal=signal,
        pairs=9,
        beats_ratio=0.5,
        beats_interval=(0.4, 0.6),
        auc=0.5,
        auc_interval=(0.4, 0.6),
        warning=warning,
        levels=[],
        standing_out=[],
    )


def test_warnings_are_those_of_all_controls_that_of_the_levels_first_and_each_once():
    signals = [
        SignalSummary(
            name=name,
            description="",
            made={},
            samples=9,
            lowest=0.0,
            mean=0.5,
            highest=1.0,
            level_means={},
            control=None if warning is None else control(name, warning),
        )
        for name, warning in (("taste", None), ("negclip", "of the levels"), ("other", "of other"))
    ]
    captions = RecaptionSummary(
        made={},
        asked=9,
        taken=9,
        refused={},
        score_before=0.0,
        score_after=0.1,
        levels_before={},
        moved={},
        warning="of captions",
    )
    manifest = dataclasses.replace(
        MANIFEST,
        score_control=control("clip_score", "of the score"),
        level_control=control("negclip", "of the levels"),
        signals=signals,
        recaption=captions,
    )
    assert manifest.warnings == ["of the levels", "of the score", "of other", "of captions"]
    again = Manifest.from_json(manifest.to_json())
    assert again.level_control == manifest.level_control and again.signals == manifest.signals
    assert MANIFEST.warnings == []


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
