from pathlib import Path

import pytest

from pipeline.config import CurationConfig, FetchConfig
from pipeline.dataset.guard import (
    as_json,
    config_from_json,
    guard_folder,
    refuse_foreign_folder,
    remove_leftovers,
    remove_outputs,
    stored_config,
)
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_text, exists
from scoring.config import LevelConfig, ScoreConfig
from tests.curations import record_of

FREE = {Stage.FETCH: ("connections",)}


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path))


def commit_something(layout, stage):
    path = {Stage.FETCH: layout.fetched(0, "_stats.json"), Stage.LEVEL: layout.levelled(0)}[stage]
    commit_text(path, "{}")


def test_other_settings_for_a_committed_stage_are_refused_with_both_values(layout):
    guard_folder(layout, CurationConfig(), list(Stage), FREE)
    commit_something(layout, Stage.FETCH)
    commit_something(layout, Stage.LEVEL)
    changed = CurationConfig(fetch=FetchConfig(image_size=512), levels=LevelConfig(num_levels=4))
    with pytest.raises(ConfigError) as refused:
        guard_folder(layout, changed, list(Stage), FREE)
    message = str(refused.value)
    assert "fetch.image_size was 256 there, this run has 512" in message
    assert "levels.num_levels was 8 there, this run has 4" in message
    assert "--redo fetch" in message
    assert "another --out" in message


def test_a_refused_run_leaves_the_recorded_configuration_as_it_was(layout):
    guard_folder(layout, CurationConfig(), list(Stage), FREE)
    commit_something(layout, Stage.LEVEL)
    with pytest.raises(ConfigError):
        guard_folder(layout, CurationConfig(levels=LevelConfig(num_levels=4)), list(Stage), FREE)
    assert config_from_json(stored_config(layout)) == CurationConfig()


def test_settings_of_a_stage_without_output_may_change(layout):
    guard_folder(layout, CurationConfig(), list(Stage), FREE)
    commit_something(layout, Stage.FETCH)
    changed = CurationConfig(levels=LevelConfig(num_levels=4))
    guard_folder(layout, changed, list(Stage), FREE)
    assert config_from_json(stored_config(layout)) == changed


def test_settings_that_decide_no_output_may_change(layout):
    guard_folder(layout, CurationConfig(), list(Stage), FREE)
    commit_something(layout, Stage.FETCH)
    guard_folder(layout, CurationConfig(fetch=FetchConfig(connections=3)), list(Stage), FREE)


def test_a_stage_alone_records_its_own_settings_only(layout):
    guard_folder(layout, CurationConfig(), list(Stage), FREE)
    other = CurationConfig(score=ScoreConfig(batch_size=7), levels=LevelConfig(num_levels=4))
    guard_folder(layout, other, [Stage.LEVEL], FREE)
    recorded = config_from_json(stored_config(layout))
    assert recorded == CurationConfig(levels=LevelConfig(num_levels=4))


def test_redo_removes_a_stage_and_all_after_it(layout):
    paths = {stage: f"{layout.root}/rejected/{stage.value}/00000.parquet" for stage in Stage}
    for path in (*paths.values(), layout.manifest, layout.levelled(0), layout.fetched(0, "tar")):
        commit_text(path, "")
    remove_outputs(layout, Stage.LEVEL, record_of(layout))
    assert not exists(layout.manifest)
    assert not exists(layout.levelled(0))
    assert exists(layout.fetched(0, "tar"))
    assert [stage for stage in Stage if exists(paths[stage])] == [
        Stage.READ,
        Stage.FETCH,
        Stage.SCORE,
        Stage.DEDUPLICATE,
    ]


def test_redo_removes_what_the_record_lists_and_nothing_else(layout):
    own = [layout.fetched(0, end) for end in ("tar", "parquet", "_stats.json")]
    own += [layout.pairs(0), layout.edges, layout.train(3, "tar"), layout.train_index]
    for path in own:
        commit_text(path, "")
    record = record_of(layout)
    names = ("train/weights.bin", "pairs/my.tsv", "pairs/00001.parquet", "fetched/00000.jpg")
    foreign = [f"{layout.root}/{path}" for path in (*names, "report.html")]
    for path in foreign:
        commit_text(path, "")
    remove_outputs(layout, Stage.READ, record)
    assert [path for path in own if exists(path)] == []
    assert all(exists(path) for path in foreign)


def test_only_half_written_files_of_ours_are_removed(layout):
    hexes = "a" * 32
    ours = [f"pairs/.00000.parquet.{hexes}.tmp", f"_run/.config.json.{hexes}.tmp"]
    ours += [f"rejected/read/.00000.parquet.{hexes}.tmp", f".manifest.json.{hexes}.tmp"]
    theirs = [".draft.tmp", f".thesis.odt.{hexes}.tmp", f"pairs/.notes.{hexes}.tmp"]
    theirs += [f"mine/.00000.parquet.{hexes}.tmp"]
    for name in (*ours, *theirs):
        commit_text(f"{layout.root}/{name}", "")
    remove_leftovers(layout)
    assert [name for name in ours if exists(f"{layout.root}/{name}")] == []
    assert [name for name in theirs if not exists(f"{layout.root}/{name}")] == []


def test_a_new_dataset_is_not_begun_among_other_files(layout):
    refuse_foreign_folder(layout)
    commit_text(f"{layout.run}/lock", "")
    for name in ("pairs", "rejected/fetch"):
        Path(layout.root, name).mkdir(parents=True)
    Path(layout.root, "fetched", "lost+found").mkdir(parents=True)
    refuse_foreign_folder(layout)
    for name in ("a.tsv", "train/weights.bin", "z"):
        commit_text(f"{layout.root}/{name}", "")
    with pytest.raises(ConfigError, match=r"\(a.tsv, train/weights.bin, z\): give --out a new"):
        refuse_foreign_folder(layout)
    guard_folder(layout, CurationConfig(), [Stage.READ], FREE)
    refuse_foreign_folder(layout)


@pytest.mark.parametrize(
    "name",
    [
        "pairs/00000.parquet",
        "fetched/00000.tar",
        "rejected/read/00000.parquet",
        "rejected/x.txt",
        "train/index.json",
        "manifest.json",
        "_run/notes.txt",
        "_run/config.json",
        "_run/lock",
    ],
)
def test_a_new_dataset_is_not_begun_among_files_that_are_named_like_ours(layout, name):
    commit_text(f"{layout.root}/{name}", '{"mine": true}')
    with pytest.raises(ConfigError, match=name):
        refuse_foreign_folder(layout)


def test_a_setting_that_this_program_does_not_know_is_a_clear_error():
    values = as_json(CurationConfig())
    values["fetch"]["carrier_pigeons"] = 3
    with pytest.raises(DatasetError, match="carrier_pigeons"):
        config_from_json(values)
