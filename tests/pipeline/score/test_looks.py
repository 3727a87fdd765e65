"""Signals of further models: a second CLIP and one that is asked, on a finished dataset."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.job.paths import absolute_config, model_paths
from pipeline.report.write import write_report
from pipeline.score.rescore import rescore_dataset
from pipeline.score.signals import signal_steps
from schemas.columns import SIGNAL_FIELD
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import ScoreConfig
from tests.curations import contents, curate
from tests.tiny_itm import write_tiny_itm


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return write_tiny_itm(tmp_path_factory.mktemp("itm") / "Tiny-VLM")


@pytest.fixture
def looked(curated, config, tiny_clip, asked, tmp_path):
    """A copy of a finished dataset, and its configuration with signals of two models."""
    root = tmp_path / "data"
    shutil.copytree(curated[0], root)
    second = f"second=clip:{tiny_clip.config_file}/{tiny_clip.weights}"
    score = replace(config.score, signals=("negclip", second, f"itm:{asked}"))
    return root, replace(config, score=score)


@pytest.mark.slow
def test_models_add_columns_leave_the_rest_and_are_reproduced(looked, asked, tmp_path):
    root, config = looked
    before, scored = contents(root), pq.read_table(root / "scored" / "00000.parquet")
    curate(config, "none", root, [Stage.SCORE])
    added = pq.read_table(root / "scored" / "00000.parquet")
    assert added.select(scored.column_names).equals(scored)
    exchanged = ["negclip exchanged", "second exchanged"]
    new = added.column_names[len(scored.column_names) :]
    assert new == ["itm_tiny_vlm", "negclip", "second", *exchanged]
    after = contents(root)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {name for name in after if name.startswith("scored/")}
    # The same weights under open_clip's plain preprocessing: near the first model's, not equal.
    second, first = added["second"].to_numpy(), added["clip_score"].to_numpy()
    assert np.abs(second - first).max() > 1e-4 and np.corrcoef(second, first)[0, 1] > 0.3
    assert 0 < added["itm_tiny_vlm"].to_numpy().min() < added["itm_tiny_vlm"].to_numpy().max() < 1
    made = json.loads(added.schema.field("itm_tiny_vlm").metadata[SIGNAL_FIELD])
    assert made["prompt"] == config.score.itm_prompt and len(made["files_sha256"]) == 64
    made = json.loads(added.schema.field("second").metadata[SIGNAL_FIELD])
    assert len(made["weights_sha256"]) == 64 and made["precision"] in ("fp32", "bf16")
    curate(config, "none", root, [Stage.SCORE])  # nothing is left to do
    assert contents(root) == after

    report = rescore_dataset(str(root), 20)
    assert report.is_reproduced and set(report.signals) == {"itm_tiny_vlm", "negclip", "second"}
    curate(config, "none", root, [Stage.PACK])
    manifest = write_report(DatasetLayout(str(root)), config)
    told = {signal.name: signal.description for signal in manifest.signals}
    asked_model, negclip, second_model = manifest.signals
    assert "would have to be asked about exchanged pairs" in asked_model.no_control
    assert negclip.control.pairs == second_model.control.pairs == manifest.score_control.pairs
    assert "likelihood of yes" in told["itm_tiny_vlm"] and "cosine" in told["second"]

    other = replace(config, score=replace(config.score, itm_prompt="{caption}?"))
    curate(other, "none", root, [Stage.SCORE])  # asked otherwise, that column alone is made anew
    asked_anew = pq.read_table(root / "scored" / "00000.parquet")
    left = [name for name in added.column_names if name != "itm_tiny_vlm"]
    assert asked_anew.select(left).equals(added.select(left))
    assert not asked_anew["itm_tiny_vlm"].equals(added["itm_tiny_vlm"])
    shutil.copytree(asked, tmp_path / "moved")
    write_tiny_itm(tmp_path / "another", seed=1)
    swap(asked, tmp_path / "another")
    with pytest.raises(DatasetError, match="itm_tiny_vlm was made with another files_sha256"):
        rescore_dataset(str(root), 5)
    swap(asked, tmp_path / "moved")


def swap(folder, other) -> None:
    shutil.copy(other / "model.safetensors", folder)


def test_a_model_that_is_not_there_stops_the_job_before_it_starts(looked):
    root, config = looked
    before = contents(root)
    for signal, message in (
        ("clip:ViT-B-99/openai", "'ViT-B-99' is no model of open_clip"),
        ("itm:no/such/model", "itm:no/such/model is neither a folder nor a model"),
    ):
        wrong = replace(config, score=replace(config.score, signals=(signal,)))
        with pytest.raises(ConfigError, match=message):
            curate(wrong, "none", root, [Stage.SCORE])
    assert contents(root) == before


def test_each_model_has_a_pass_of_its_own_and_paths_good_everywhere(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vlm").mkdir()
    signals = ("itm:vlm", "negclip", "clip:ViT-B-32/openai", "clip:a.json/w.pt", "m:f")
    steps = [step.signals for step in signal_steps(ScoreConfig(signals=signals))]
    assert steps == [("negclip", "m:f"), *((text,) for text in signals if text[:4] in "itm:clip")]
    here = absolute_config(replace(config, score=ScoreConfig(signals=signals)))
    assert here.score.signals == (
        f"itm_vlm=itm:{tmp_path}/vlm",
        "negclip",
        "clip_vit_b_32=clip:ViT-B-32/openai",
        f"clip_a=clip:{tmp_path}/a.json/{tmp_path}/w.pt",
        "m:f",
    )
    wanted = {f"{tmp_path}/{name}" for name in ("vlm", "a.json", "w.pt")}
    assert set(model_paths(here)) == wanted
    named = ScoreConfig(signals=("clip:hf-hub:me/CLIP-x",)).signals
    assert [step.signals for step in signal_steps(ScoreConfig(signals=named))] == [named]
