"""A worker proves that it sees what its job sees."""

import dataclasses
import json
import shutil
from pathlib import Path

import fsspec.implementations.memory
import pytest

from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.job.lock import hold_folder
from pipeline.job.paths import absolute_config, absolute_inputs, absolute_layout, model_paths
from pipeline.job.sight import (
    Sight,
    needs_of,
    refuse_local_paths,
    refuse_other_sight,
    sights_of,
)
from pipeline.read.inputs import check_inputs
from schemas.errors import ConfigError, StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import LevelConfig, ScoreConfig


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """What a job sees whose paths are relative, while it holds the folder."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Path("in/pairs.tsv").write_text("url\tcaption\nhttp://a.example/x.png\tx\n")
    Path("model").mkdir()
    Path("model/open_clip_config.json").write_text("{}")
    score = ScoreConfig(model="local-dir:model")
    config = absolute_config(dataclasses.replace(CurationConfig(), score=score))
    inputs = absolute_inputs(check_inputs(["in/pairs.tsv"], config.read))
    layout = absolute_layout(DatasetLayout("out"))
    with hold_folder(layout):
        yield sights_of(layout, config, config.stages, inputs)


def test_what_the_workers_get_is_absolute_whatever_was_typed(paths, tmp_path):
    seen = {sight.use: sight.path for sight in paths}
    assert seen == {
        "the output": f"{tmp_path}/out",
        "the input": f"{tmp_path}/in/pairs.tsv",
        "the model": f"{tmp_path}/model",
    }


def test_a_worker_that_sees_the_same_is_let_in_wherever_it_works(paths, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    refuse_other_sight(paths)
    assert sorted(path.name for path in (tmp_path / "out" / "_run").iterdir()) == [
        "lock",
        "workers.lock",
    ]


def remove_input(root: Path) -> None:
    (root / "in" / "pairs.tsv").unlink()


def change_input(root: Path) -> None:
    (root / "in" / "pairs.tsv").write_text("url\tcaption\nhttp://a.example/y.png\ty\n")


def remove_model(root: Path) -> None:
    shutil.rmtree(root / "model")


def leave_another_output(root: Path) -> None:
    lock = root / "out" / "_run" / "lock"
    other = {**json.loads(lock.read_text()), "token": "of another machine's folder"}
    lock.write_text(json.dumps(other))


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (remove_input, r"the input .*/in/pairs.tsv \(.*\): put it where all machines find it"),
        (change_input, r"the input .* \(another file or folder stands there\)"),
        (remove_model, r"the model .*/model \(.*\): put it at the same path on every machine"),
        (leave_another_output, r"the output .*/out \(the job's lock is not in it.*name by --out"),
    ],
)
def test_a_worker_that_sees_something_else_says_what_and_what_to_use(paths, tmp_path, deed, said):
    deed(tmp_path)
    with pytest.raises(ConfigError, match=said):
        refuse_other_sight(paths)


def test_a_worker_that_cannot_reach_the_store_is_cut_off_not_misconfigured(monkeypatch):
    def fail(*args: object, **more: object) -> bool:
        raise RuntimeError("Could not connect to the endpoint URL")  # botocore's are of no kind

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "isdir", fail)
    with pytest.raises(StorageError, match=r"is cut off: the input memory://in \(cannot reach"):
        refuse_other_sight([Sight("the input", "memory://in", "1 2")])


def test_paths_on_a_disk_are_refused_where_workers_share_none(paths):
    with pytest.raises(ConfigError, match=r"no disk of this machine: the output .*s3://bucket"):
        refuse_local_paths(paths, "Dataflow's workers have no disk of this machine")


def test_a_stage_that_scores_nothing_needs_no_model(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    score = ScoreConfig(model="local-dir:/gone")
    config = dataclasses.replace(CurationConfig(), score=score)
    with hold_folder(layout):
        assert [one.use for one in sights_of(layout, config, (Stage.LEVEL,), ())] == ["the output"]
        with pytest.raises(ConfigError, match="/gone: No such file"):
            sights_of(layout, config, (Stage.SCORE,), ())


@pytest.mark.parametrize(
    ("pretrained", "expected"),
    [
        ("openai", "openai"),
        ("openai:w.pt", "openai:/work/w.pt"),
        ("w.pt", "/work/w.pt"),
        ("dir/w", "/work/dir/w"),
        ("/x/w.pt", "/x/w.pt"),
    ],
)
def test_weights_are_found_from_every_folder_and_tags_stay(monkeypatch, pretrained, expected):
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    config = dataclasses.replace(
        CurationConfig(), score=ScoreConfig(model="ViT-B-32", pretrained=pretrained)
    )
    assert absolute_config(config).score.pretrained == expected


def test_the_heads_of_signals_are_found_from_every_folder_and_looked_at(monkeypatch):
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    score = ScoreConfig(signals=("negclip", "head:nsfw.safetensors", "taste=head:/x/y.safetensors"))
    config = absolute_config(dataclasses.replace(CurationConfig(), score=score))
    assert config.score.signals == (
        "negclip",
        "nsfw=head:/work/nsfw.safetensors",
        "taste=head:/x/y.safetensors",
    )
    assert model_paths(config) == ("/work/nsfw.safetensors", "/x/y.safetensors")


def test_lists_certificates_and_old_edges_are_looked_at_by_the_stages_that_read_them(monkeypatch):
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    config = absolute_config(
        CurationConfig(
            read=ReadConfig(deny_urls=("urls.txt",), deny_hosts=("hosts.txt",)),
            fetch=FetchConfig(deny_hashes=("hashes.txt",), ca_file="ca.pem"),
            levels=LevelConfig(edges_from="old"),
        )
    )
    needed = {stage: [path for _, path in needs_of(config, (stage,), ())] for stage in Stage}
    assert needed[Stage.READ] == ["/work/urls.txt", "/work/hosts.txt"]
    assert needed[Stage.FETCH] == ["/work/hashes.txt", "/work/ca.pem"]
    assert needed[Stage.LEVEL] == ["/work/old/levelled/edges.json"]
    assert needed[Stage.PACK] == []
