"""Paths as every process of a job takes them."""

from dataclasses import replace

import pytest

from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.job.paths import absolute_config, absolute_inputs, absolute_layout, model_paths
from pipeline.read.inputs import check_inputs
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig, ScoreConfig


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_path_of_a_configuration_is_absolute_and_all_else_stays(here):
    config = CurationConfig(
        read=ReadConfig(image_folder="a", deny_urls=("b",), deny_hosts=("/c",)),
        fetch=FetchConfig(allow_folders=("d", "s3://bucket/e"), deny_hashes=("f",)),
        score=ScoreConfig(model="local-dir:g", pretrained="", signals=("x=head:h.safetensors",)),
        levels=LevelConfig(edges_from="i"),
    )
    found = absolute_config(config)
    assert (found.read.image_folder, found.read.deny_urls) == (f"{here}/a", (f"{here}/b",))
    assert found.read.deny_hosts == ("/c",)
    assert found.fetch.allow_folders == (f"{here}/d", "s3://bucket/e")
    assert found.fetch.deny_hashes == (f"{here}/f",)
    assert found.score.model == f"local-dir:{here}/g"
    assert found.score.signals == (f"x=head:{here}/h.safetensors",)
    assert found.levels.edges_from == f"{here}/i"
    assert absolute_config(found) == found
    assert absolute_config(CurationConfig()) == CurationConfig()


@pytest.mark.parametrize(
    ("model", "pretrained", "absolute", "read_from"),
    [
        ("ViT-B-32", "openai", "openai", ()),
        ("ViT-B-32", "w.pt", "HERE/w.pt", ("w.pt",)),
        ("ViT-B-32", "openai:w.pt", "openai:HERE/w.pt", ("w.pt",)),
        ("tiny.json", "folder/w", "HERE/folder/w", ("tiny.json", "folder/w")),
        ("local-dir:clip", "", "", ("clip",)),
    ],
)
def test_a_model_is_read_from_its_files(here, model, pretrained, absolute, read_from):
    config = CurationConfig(score=ScoreConfig(model=model, pretrained=pretrained))
    assert model_paths(config) == read_from
    found = absolute_config(config)
    assert found.score.pretrained == absolute.replace("HERE", str(here))
    heads = ("negclip", "taste=head:t.safetensors")
    with_head = replace(config, score=replace(config.score, signals=heads))
    assert model_paths(with_head) == (*read_from, "t.safetensors")


def test_inputs_and_the_dataset_are_known_by_what_was_typed(here):
    (here / "in.txt").write_text("https://a.example/1.jpg\tone\n")
    (file,) = check_inputs(["in.txt"], ReadConfig())
    (found,) = absolute_inputs([file])
    assert found.path == f"{here}/in.txt"
    assert (found.identity, found.name) == (file.identity, "in.txt")
    assert absolute_layout(DatasetLayout("out")).root == f"{here}/out"
    assert absolute_layout(DatasetLayout("memory://out")).root == "memory://out"
