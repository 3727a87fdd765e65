import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from pipeline.cli import run
from pipeline.dataset.edges import read_old_edges
from pipeline.dataset.train_samples import TarReaders
from pipeline.report.inspect import inspect_dataset
from pipeline.report.verify import verify_dataset
from pipeline.select.run import Selection, make_selection
from schemas.columns import read_table
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.records import TRAIN_SCHEMA
from schemas.terminal import Console
from scoring.config import LevelConfig
from tests.curations import quiet_console
from tests.datasets import add_signal, finish, jpeg, write_dataset


@pytest.fixture(scope="module")
def turns(tmp_path_factory) -> Path:
    """A finished dataset of 20 conversations, not scored, some of text alone."""
    root = tmp_path_factory.mktemp("turns")
    write_dataset(root, shards=1, is_scored=False)
    finish(root, is_scored=False)
    return root


def rows_of(root: Path) -> list[dict]:
    paths = sorted((root / "train").glob("*.parquet"))
    return [row for path in paths for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()]


def manifest_of(root: Path) -> Manifest:
    return Manifest.from_json((root / "manifest.json").read_text())


def make(out: Path, *parents: Path, **settings) -> list[dict]:
    """Returns the rows of a selection or a merger."""
    command = "select" if len(parents) == 1 else "merge"
    chosen = Selection(command=command, parents=tuple(map(str, parents)), **settings)
    make_selection(chosen, str(out), quiet_console())
    return rows_of(out)


def without_places(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "image_offset"}


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "train").iterdir()}


def test_a_selection_holds_the_rows_that_fulfil_the_condition_with_their_images(parent, tmp_path):
    out = tmp_path / "out"
    condition = "alignment_level >= 3 and caption not like '%3'"
    rows = make(out, parent, where=condition, samples_per_shard=7)
    expected = [
        row
        for row in rows_of(parent)
        if row["alignment_level"] >= 3 and not row["caption"].endswith("3")
    ]
    assert [without_places(row) for row in rows] == [without_places(row) for row in expected]
    assert verify_dataset(str(out)).samples == len(rows)
    for path in (out / "train").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".jpg"):
                    assert tar.extractfile(member).read() == jpeg(int(member.name[:8], 16))


def test_its_manifest_and_page_name_the_parent_and_the_condition(parent, tmp_path):
    out = tmp_path / "out"
    rows = make(out, parent, where="alignment_level = 4")
    manifest, before = manifest_of(out), manifest_of(parent)
    (named,) = manifest.parents
    assert (named.folder, named.samples, named.taken) == (str(parent), 38, len(rows))
    assert manifest.where == "alignment_level = 4"
    assert (manifest.rows_in, manifest.kept) == (38, len(rows))
    assert manifest.rejected == {"not_selected": 38 - len(rows)}
    assert (manifest.model, manifest.num_levels) == (before.model, 4)
    assert str(parent) in (out / "report.html").read_text()
    said = io.StringIO()
    inspect_dataset(str(out), Console(file=said, width=120))
    assert "select" in said.getvalue()


def test_what_a_parent_warned_of_is_not_lost_however_often_it_is_selected(parent, tmp_path):
    doubtful = tmp_path / "doubtful"
    shutil.copytree(parent, doubtful)
    about = {"signal": "negclip", "pairs": 9, "beats_ratio": 0.5, "auc": 0.5, "levels": []}
    about |= {"beats_interval": [0.4, 0.6], "auc_interval": [0.4, 0.6], "standing_out": []}
    told = json.loads((doubtful / "manifest.json").read_text())
    told["level_control"] = {**about, "warning": "the levels mean nothing"}
    (doubtful / "manifest.json").write_text(json.dumps(told))
    for out, source in (("first", doubtful), ("second", tmp_path / "first")):
        make(tmp_path / out, source, where="alignment_level >= 3")
        assert manifest_of(tmp_path / out).parents[0].warnings == ["the levels mean nothing"]
        assert "the levels mean nothing" in (tmp_path / out / "report.html").read_text()
    said = io.StringIO()
    inspect_dataset(str(tmp_path / "second"), Console(file=said, width=200))
    assert "first: the levels mean nothing" in said.getvalue()


def test_levels_are_cut_anew_where_asked(parent, tmp_path):
    rows = make(tmp_path / "out", parent, where="alignment_level >= 2", num_levels=3)
    counts = Counter(row["alignment_level"] for row in rows)
    assert sorted(counts) == [1, 2, 3]
    assert max(counts.values()) - min(counts.values()) <= 1
    ranked = sorted(rows, key=lambda row: (row["clip_score"], int(row["key"][:16], 16)))
    assert [row["alignment_level"] for row in ranked] == [
        1 + 3 * rank // len(rows) for rank in range(len(rows))
    ]
    assert manifest_of(tmp_path / "out").num_levels == 3


@pytest.fixture(scope="module")
def tasted(tmp_path_factory) -> Path:
    """The parent's pairs, levelled by a signal that is the opposite of the score."""
    root = tmp_path_factory.mktemp("tasted")
    write_dataset(root)
    add_signal(root, "taste", lambda score: -score)
    finish(root, by="taste")
    return root


@pytest.mark.slow
def test_levels_are_cut_anew_by_the_signal_that_decided_them(tasted, tmp_path):
    rows = make(tmp_path / "out", tasted, where="taste < 0.2", num_levels=3)
    assert 10 < len(rows) < 38
    tastes = {row["key"]: -row["clip_score"] for row in rows}
    ranked = sorted(rows, key=lambda row: (tastes[row["key"]], int(row["key"][:16], 16)))
    assert [row["alignment_level"] for row in ranked] == [
        1 + 3 * rank // len(rows) for rank in range(len(rows))
    ]
    verify_dataset(str(tmp_path / "out"))
    again = make(tmp_path / "again", tmp_path / "out", num_levels=2)
    assert max(again, key=lambda row: row["clip_score"])["alignment_level"] == 1


def test_levels_of_different_columns_are_not_merged(tasted, parent, turns, tmp_path):
    for num_levels in (None, 3):
        with pytest.raises(ConfigError, match=rf"by clip_score in {parent} and by taste in"):
            make(tmp_path / "out", parent, tasted, turns, num_levels=num_levels)
    assert not (tmp_path / "out" / "train").exists()
    assert len(make(tmp_path / "out", tasted, turns)) > 38


def test_samples_that_no_model_scored_keep_no_level_where_others_are_cut_anew(
    tasted, turns, tmp_path
):
    rows = make(tmp_path / "out", tasted, turns, num_levels=3)
    counts = Counter(row["alignment_level"] for row in rows)
    assert counts == {1: 13, 2: 13, 3: 12, None: 5}
    assert {row["alignment_level"] for row in rows if row["clip_score"] is None} == {None}
    verify_dataset(str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="needs scores, and these samples have none"):
        make(tmp_path / "no", tmp_path / "out", where="clip_score is null", num_levels=3)


def test_columns_that_differ_in_case_alone_are_not_merged(tasted, tmp_path):
    root = tmp_path / "other"
    write_dataset(root, shards=1)
    add_signal(root, "Taste", lambda score: score)
    finish(root, by="Taste")
    with pytest.raises(ConfigError, match="column 'taste', another 'Taste', which SQL does"):
        make(tmp_path / "out", tasted, root)


@pytest.mark.slow
def test_a_merger_stands_in_the_order_of_keys_and_counts_a_repeated_pair_once(
    parent, turns, tmp_path
):
    low, high = tmp_path / "low", tmp_path / "high"
    make(low, parent, where="alignment_level <= 3", num_levels=2)
    make(high, parent, where="alignment_level >= 2", num_levels=2)
    rows = make(tmp_path / "out", low, turns, high, samples_per_shard=20)
    keys = [row["key"] for row in rows]
    assert keys == sorted({row["key"] for root in (parent, turns) for row in rows_of(root)})
    first = {row["key"]: row["alignment_level"] for row in rows_of(low)}
    found = {row["key"]: row["alignment_level"] for row in rows}
    assert {key: found[key] for key in first} == first
    manifest = manifest_of(tmp_path / "out")
    repeated = len(rows_of(low)) + len(rows_of(turns)) + len(rows_of(high)) - len(rows)
    assert manifest.rejected == {"repeated_key": repeated}
    assert sum(one.taken for one in manifest.parents) == len(rows)
    verify_dataset(str(tmp_path / "out"))


@pytest.mark.slow
def test_a_selection_that_was_stopped_goes_on_to_the_same_bytes(parent, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    settings = {"where": "width = 24", "samples_per_shard": 8}
    make(whole, parent, **settings)
    read, calls = TarReaders.images, []

    def dying(self, path, row):
        calls.append(row["key"])
        if len(calls) == 19:
            raise KeyboardInterrupt
        return read(self, path, row)

    monkeypatch.setattr(TarReaders, "images", dying)
    with pytest.raises(KeyboardInterrupt):
        make(stopped, parent, **settings)
    assert not (stopped / "manifest.json").exists()
    make(stopped, parent, **settings)
    assert bytes_of(stopped) == bytes_of(whole)
    assert len(calls) == 19 + 38 - 16
    with pytest.raises(ConfigError, match=r"was 'width = 24' there, this run has 'width > 2'"):
        make(stopped, parent, **{**settings, "where": "width > 2"})


def test_what_cannot_be_made_is_refused_before_anything_is_written(parent, turns, tmp_path):
    for parents, settings, message in [
        ((parent,), {"where": "alignment_level > 9"}, "no sample of 38 fulfils"),
        ((parent, parent), {}, "are the same dataset"),
        ((turns,), {"where": "true", "num_levels": 4}, "needs scores"),
        ((parent,), {"where": "true", "num_levels": 0}, r"--cut-levels must be in 2\.\.127"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make(tmp_path / "out", *parents, **settings)
        assert not (tmp_path / "out" / "train").exists()
    with pytest.raises(ConfigError, match="lie in each other"):
        make(parent / "inner", parent, where="true")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds what is not of a dataset"):
        make(tmp_path / "mine", parent, where="true")
    with pytest.raises(ConfigError, match="there is no folder"):
        make(tmp_path / "out", tmp_path / "nowhere", where="true")


def test_scores_of_different_models_are_not_merged(parent, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    values = json.loads((other / "manifest.json").read_text())
    values["model"] = {"model": "another", "precision": "fp32"}
    (other / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="scored by different models"):
        make(tmp_path / "out", parent, other)


def test_a_damaged_parent_is_named(parent, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(parent, other)
    tar = other / "train" / "000001.tar"
    tar.write_bytes(tar.read_bytes().replace(rows_of(parent)[20]["key"].encode(), b"0" * 32))
    with pytest.raises(DatasetError, match=r"000001\.tar does not hold .* where its table says"):
        make(tmp_path / "out", other, where="true")


def test_the_commands_say_what_they_did_and_what_is_wrong(parent, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert run(["select", str(parent), "--where", "clip_score > 0", "--out", out]) == 0
    assert f"of 38 samples: {out}" in " ".join(capsys.readouterr().out.split())
    assert run(["select", str(parent), "--where", "clip_scor > 0", "--out", out]) == 2
    assert "clip_scor" in capsys.readouterr().err
    assert run(["merge", str(parent), "--out", out]) == 2
    assert run(["curate", "--pairs", str(tmp_path / "x.tsv"), "--out", out]) == 2


@pytest.mark.slow
def test_edges_of_a_selection_are_looked_for_where_they_were_cut(parent, tmp_path):
    make(tmp_path / "kept", parent, where="alignment_level >= 3")
    make(tmp_path / "anew", parent, where="true", num_levels=2)
    with pytest.raises(ConfigError, match=f"has the levels of what it was made from: {parent}"):
        read_old_edges(LevelConfig(num_levels=4, edges_from=str(tmp_path / "kept")))
    with pytest.raises(ConfigError, match="select cut its levels anew, which leaves no edges"):
        read_old_edges(LevelConfig(num_levels=2, edges_from=str(tmp_path / "anew")))
    with pytest.raises(ConfigError, match="name a dataset with levels"):
        read_old_edges(LevelConfig(edges_from=str(tmp_path / "nothing")))
