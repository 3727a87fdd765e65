"""Counts and levels that do not agree."""

from dataclasses import replace

import pytest

from pipeline.report.verify_counts import count_problems, imbalances
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from tests.corruptions import (
    Corruption,
    check_found,
    edit_json,
    put,
)

CORRUPTIONS: dict[str, Corruption] = {
    "a count in the manifest": (
        lambda root: edit_json(
            root / "manifest.json", lambda v: v["stages"]["fetch"]["rejected"].update(http_status=3)
        ),
        r"fetch: its tables have \{'http_status': 2\} rejected, the manifest says",
    ),
    "a table of rejections that is gone": (
        lambda root: (root / "rejected" / "fetch" / "00001.parquet").unlink(),
        r"fetch: its tables have \{'http_status': 1\} rejected",
    ),
    "edges of other data": (
        lambda root: edit_json(
            root / "levelled" / "edges.json", lambda values: put(values["levels"], 2, count=99)
        ),
        r"levelled/edges\.json: level 3 has count 99",
    ),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found(name, whole, tmp_path):
    check_found(whole, tmp_path, CORRUPTIONS[name], has_quick=False)


@pytest.fixture
def manifest(whole):
    return Manifest.from_json((whole / "manifest.json").read_text())


def test_a_whole_dataset_has_no_problems(whole, manifest):
    assert list(imbalances(manifest)) == []
    assert list(count_problems(DatasetLayout(str(whole)), manifest)) == []


def test_every_count_that_contradicts_another_is_told(manifest):
    stages = {name: replace(one) for name, one in manifest.stages.items()}
    stages["fetch"] = replace(stages["fetch"], kept=39)
    wrong = replace(manifest, stages=stages, kept=37)
    assert list(imbalances(wrong)) == [
        "fetch: 42 rows in, but 39 kept + 2 rejected",
        "score: 40 rows in, but fetch kept 39",
        "42 rows in, but 37 kept + 4 rejected",
        "the train shards hold 38 samples, but 37 were kept",
    ]


def test_levels_that_overlap_are_told_where_one_signal_cut_them_all(whole, manifest):
    layout = DatasetLayout(str(whole))
    levels = [dict(level) for level in manifest.level_edges]
    levels[1]["highest_score"] = 2.0
    wrong = replace(manifest, level_edges=levels)
    told = list(count_problems(layout, wrong))
    assert told[0].startswith("manifest.json: level 2 reaches up to 2.0, level 3 begins at")
    assert len(told) == 2 and "level 2 has max_score" in told[1]
    config = manifest.config | {"levels": manifest.config["levels"] | {"per_source": True}}
    shared = list(count_problems(layout, replace(wrong, config=config)))
    assert shared == told[1:]


def test_edges_that_are_none_are_told(whole, manifest, tmp_path):
    for text in ("[]", "{", '{"levels": 3}', '{"levels": [{}]}'):
        (tmp_path / "levelled").mkdir(exist_ok=True)
        (tmp_path / "levelled" / "edges.json").write_text(text)
        *_, told = count_problems(DatasetLayout(str(tmp_path)), manifest)
        assert told.startswith("levelled/edges.json is no file of edges: ")
