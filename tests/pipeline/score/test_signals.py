"""Signals of a finished dataset: added without a second pass, carried to `train/`, reproduced."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from pipeline.dataset.deny import DenyFiles
from pipeline.purge.run import purge_dataset
from pipeline.report.inspect import inspect_dataset
from pipeline.report.verify import verify_dataset
from pipeline.report.write import write_report
from pipeline.score.rescore import rescore_dataset
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console
from tests.curations import contents, curate, quiet_console

FUNCTION = """
import numpy as np

def brevity(pairs):
    return -np.array([len(caption) for caption in pairs.captions], np.float32)
"""


@pytest.fixture
def finished(curated, config, tmp_path, monkeypatch):
    """A copy of a finished dataset, and its configuration with three signals."""
    root = tmp_path / "data"
    shutil.copytree(curated[0], root)
    (tmp_path / "ours.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(tmp_path)
    weight = np.random.default_rng(0).normal(size=(1, 24)).astype(np.float32)
    save_file({"weight": weight}, str(tmp_path / "taste.safetensors"))
    signals = ("negclip", f"head:{tmp_path / 'taste.safetensors'}", "ours:brevity")
    return root, replace(config, score=replace(config.score, signals=signals)), weight


def run(root, config, *stages, **settings):
    return curate(config, "none", root, stages, **settings)


@pytest.mark.slow
def test_signals_are_added_without_touching_the_rest_and_go_to_train(finished):
    root, config, weight = finished
    before, scored = contents(root), pq.read_table(root / "scored" / "00000.parquet")
    run(root, config, Stage.SCORE)
    added = pq.read_table(root / "scored" / "00000.parquet")
    assert added.select(scored.column_names).equals(scored)
    exchanged = ["brevity exchanged", "negclip exchanged"]
    new = added.column_names[len(scored.column_names) :]
    assert new == ["brevity", "negclip", "taste", *exchanged]
    image = np.stack([np.asarray(row, np.float32) for row in scored["image_embedding"].to_numpy()])
    assert added["taste"].to_numpy() == pytest.approx(image @ weight[0], abs=1e-5)
    after = contents(root)
    assert {name for name in after if after[name] != before.get(name)} == {
        name for name in after if name.startswith("scored/")
    }
    run(root, config, Stage.SCORE)  # nothing is left to do
    assert contents(root) == after

    levels = replace(config.levels, by="negclip", keep="brevity > -40 and clip_score < 2")
    by_signal = replace(config, levels=levels)
    run(root, by_signal, Stage.LEVEL, Stage.PACK, redo=Stage.LEVEL)
    manifest = write_report(DatasetLayout(str(root)), by_signal)
    check_levels(root, manifest)
    assert [signal.name for signal in manifest.signals] == ["brevity", "negclip", "taste"]
    page = (root / "report.html").read_text()
    assert "negCLIPLoss" in page and "Does negclip tell anything?" in page
    assert "it looks at the caption alone" in page and "it looks at the picture alone" in page
    assert manifest.level_control == manifest.signals[1].control
    assert Manifest.from_json((root / "manifest.json").read_text()) == manifest
    assert verify_dataset(str(root)).samples == manifest.kept
    said = io.StringIO()
    inspect_dataset(str(root), Console(file=said, width=120))
    assert "ours:brevity" in said.getvalue() and "By negclip a pair beats" in said.getvalue()


def check_levels(root, manifest) -> None:
    """Holds the levels against a sort of the signal, and the rejections against the condition."""
    tables = [pq.read_table(path) for path in sorted((root / "train").glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(len(row["caption"]) < 40 for row in rows)
    left_out = manifest.rejected["not_to_keep"]
    assert left_out == manifest.stages["level"].rows_in - len(rows) > 0
    rows.sort(key=lambda row: (row["negclip"], int(row["key"][:16], 16)))
    ranks = [1 + manifest.num_levels * rank // len(rows) for rank in range(len(rows))]
    assert [row["alignment_level"] for row in rows] == ranks
    member = json.loads((root / "manifest.json").read_text())
    assert member["config"]["levels"]["by"] == "negclip"


@pytest.mark.slow
def test_signals_are_reproduced_and_another_head_is_noticed(finished, curated, tmp_path):
    root, config, weight = finished
    run(root, config, Stage.SCORE)
    report = rescore_dataset(str(root), 20)
    assert report.is_reproduced
    assert set(report.signals) == {"brevity", "negclip", "taste"}
    assert "signal negclip" in str(report)
    save_file({"weight": weight + 1}, str(tmp_path / "taste.safetensors"))
    with pytest.raises(DatasetError, match="signal taste was made with another sha256"):
        rescore_dataset(str(root), 20)
    before = contents(root)
    run(root, config, Stage.SCORE)  # the head is another one now: its column alone is made anew
    assert contents(root) != before
    assert rescore_dataset(str(root), 20).is_reproduced
    shutil.copy(curated[0] / "scored" / "00001.parquet", root / "scored")  # as after a kill
    with pytest.raises(DatasetError, match="has the signals none, the first shard has"):
        run(root, config, Stage.PACK)


@pytest.mark.slow
def test_a_purge_takes_a_pair_out_of_the_reference_of_negclip_too(finished, tmp_path):
    root, config, _ = finished
    config = replace(config, score=replace(config.score, signals=("negclip",)))
    run(root, config, Stage.SCORE)
    run(root, config, Stage.PACK)
    write_report(DatasetLayout(str(root)), config)
    path = root / "scored" / "00000.parquet"
    before = pq.read_table(path)
    key = before["key"][0].as_py()  # one of the reference, which has the first rows of each shard
    pairs = [row for one in (root / "pairs").glob("*") for row in pq.read_table(one).to_pylist()]
    (tmp_path / "urls").write_text(next(row["url"] for row in pairs if row["key"] == key))
    purge_dataset(str(root), DenyFiles(urls=(str(tmp_path / "urls"),)), quiet_console())
    verify_dataset(str(root))
    purged = pq.read_table(path)
    assert purged.equals(before.filter(pc.not_equal(before["key"], key)))
    with pytest.raises(DatasetError, match="signal negclip was made with another reference"):
        rescore_dataset(str(root), 20)
    run(root, config, Stage.SCORE)
    assert rescore_dataset(str(root), 20).is_reproduced
    again = pq.read_table(path)
    assert not again["negclip"].equals(purged["negclip"])
    made_anew = ["negclip", "negclip exchanged"]
    assert again.drop_columns(made_anew).equals(purged.drop_columns(made_anew))


def test_what_cannot_be_computed_stops_the_job_before_it_starts(finished):
    root, config, _ = finished
    before = contents(root)
    for signals, levels, message in (
        (("ours:nothing",), {}, "ours:nothing cannot be found"),
        (("negclip",), {"by": "nsfw"}, "'nsfw' is neither clip_score nor a signal"),
        (("negclip",), {"keep": "negclip"}, "--levels.keep 'negclip' is of type"),
    ):
        wrong = replace(
            config,
            score=replace(config.score, signals=signals),
            levels=replace(config.levels, **levels),
        )
        with pytest.raises(ConfigError, match=message):
            run(root, wrong, Stage.SCORE, Stage.DEDUPLICATE, Stage.LEVEL)
    assert contents(root) == before
