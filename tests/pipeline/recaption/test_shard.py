"""What becomes of a shard's pairs once a model has written captions for some."""

import io
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.browse.rows import DatasetRows
from pipeline.cli import run
from pipeline.report.inspect import inspect_dataset
from pipeline.report.verify import verify_dataset
from schemas.columns import RECAPTION_FIELD, file_metadata
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.stages import Stage
from schemas.terminal import Console
from scoring.clip.scorer import shared_scorer
from tests.curations import contents, curate


def rows_of(root, folder="recaptioned"):
    tables = [pq.read_table(path) for path in sorted((root / folder).glob("*.parquet"))]
    return pa.concat_tables(tables).to_pylist()


def test_the_better_of_both_captions_counts_and_both_are_kept(recaptioned):
    before = {row["key"]: row for row in rows_of(recaptioned.before, "train")}
    rows = rows_of(recaptioned.root)
    assert {row["key"] for row in rows} == before.keys()
    asked = [row for row in rows if row["is_recaptioned"] is not None]
    assert {row["original_level"] for row in asked} == {1, 2, 3}
    assert len(asked) == sum(row["alignment_level"] <= 3 for row in before.values())
    for row in rows:
        old = before[row["key"]]
        if row["is_recaptioned"] is None:
            assert (row["clip_score"], row["alignment_level"]) == (
                old["clip_score"],
                old["alignment_level"],
            )
            assert row["original_caption"] is row["model_caption"] is row["caption_model"] is None
            continue
        assert (row["original_caption"], row["original_score"], row["original_level"]) == (
            old["caption"],
            old["clip_score"],
            old["alignment_level"],
        )
        is_better = row["model_score"] is not None and row["model_score"] > old["clip_score"]
        assert row["is_recaptioned"] == is_better
        assert row["clip_score"] == (row["model_score"] if is_better else old["clip_score"])
        assert (row["model_score"] is None) == (row["model_refused"] is not None)
        assert row["caption_model"] == "Tiny-Writer"
    taken = [row for row in asked if row["is_recaptioned"]]
    assert 0 < len(taken) < len(asked)
    assert any(row["model_refused"] for row in asked)


def test_a_level_follows_the_score_by_the_edges_as_they_were_cut(recaptioned):
    edges = json.loads((recaptioned.root / "levelled" / "edges.json").read_text())
    (group,) = edges["groups"]
    starts = [edge["clip_score"] for edge in group["edges"]]
    moved: Counter[tuple[int, int]] = Counter()
    for row in rows_of(recaptioned.root):
        if row["is_recaptioned"]:
            level = 1 + int(np.searchsorted(starts, row["clip_score"], side="right"))
            assert row["alignment_level"] == level >= row["original_level"]
            moved[row["original_level"], level] += 1
    manifest = Manifest.from_json((recaptioned.root / "manifest.json").read_text())
    assert manifest.recaption is not None
    told = manifest.recaption.moved
    assert moved == {
        (int(before), int(now)): count for before, to in told.items() for now, count in to.items()
    }
    assert any(before != now for before, now in moved)


def test_the_score_of_a_new_caption_is_that_of_the_same_model(recaptioned):
    score = replace(recaptioned.config.score, precision=precision_of(recaptioned.root))
    train = [row for row in rows_of(recaptioned.root, "train") if row["model_score"] is not None]
    images = []
    for row in train:
        (tar,) = [
            path
            for path in (recaptioned.root / "train").glob("*.parquet")
            if row["key"] in pq.read_table(path)["key"].to_pylist()
        ]
        data = tar.with_suffix(".tar").read_bytes()
        images.append(data[row["image_offset"] : row["image_offset"] + row["image_bytes"]])
    found = shared_scorer(score).score(images, [row["model_caption"] for row in train])
    stored = np.array([row["model_score"] for row in train])
    assert np.abs(found.clip_score - stored).max() < 5e-3
    places = {row["key"]: place for place, row in enumerate(train)}
    for path in sorted((recaptioned.root / "recaptioned").glob("*.parquet")):
        shard = [row for row in pq.read_table(path).to_pylist() if row["key"] in places]
        for row, following in zip(shard, [*shard[1:], *shard[:1]], strict=True):
            own, other = places[row["key"]], places[following["key"]]
            exchanged = found.image_embedding[own] @ found.text_embedding[other]
            assert row["exchanged_score"] == pytest.approx(exchanged, abs=5e-3)


def precision_of(root):
    return json.loads((root / "_run" / "precision.json").read_text())["precision"]


def test_train_shards_have_the_chosen_caption_and_say_what_made_it(recaptioned):
    by_key = {row["key"]: row for row in rows_of(recaptioned.root)}
    for row in rows_of(recaptioned.root, "train"):
        told = by_key[row["key"]]
        assert all(row[name] == told[name] for name in told)
        if told["is_recaptioned"]:
            assert row["caption"] == told["model_caption"]
    schema = pq.read_schema(recaptioned.root / "train" / "000000.parquet")
    made = json.loads(schema.field("is_recaptioned").metadata[RECAPTION_FIELD])
    assert made["model"] == "Tiny-Writer" and len(made["files_sha256"]) == 64
    assert made["prompt"] == recaptioned.config.recaption.prompt
    assert made["precision"] in ("fp32", "bf16") and "transformers" in made["versions"]
    stored = file_metadata(pq.read_schema(recaptioned.root / "recaptioned" / "00000.parquet"))
    assert json.loads(stored["recaption"]) == made
    verify_dataset(str(recaptioned.root))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlcroissant
def test_readers_know_the_new_columns(recaptioned, tmp_path):
    written = io.StringIO()
    inspect_dataset(str(recaptioned.root), Console(file=written, width=200))
    assert "Tiny-Writer wrote captions for" in written.getvalue()
    assert "Levels with captions by a model" in written.getvalue()
    page = (recaptioned.root / "report.html").read_text()
    assert "Pairs before and after" in page and "How the levels moved" in page
    rows = DatasetRows(str(recaptioned.root))
    train = rows_of(recaptioned.root, "train")
    assert rows.count("is_recaptioned") == sum(bool(row["is_recaptioned"]) for row in train)
    rows.close()
    for number, where in enumerate(("is_recaptioned", "is_recaptioned is null")):
        out = tmp_path / str(number)
        words = ["select", str(recaptioned.root), "--where", where, "--out", str(out)]
        assert run(words) == 0
        verify_dataset(str(out))
    both = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert run(["merge", *both, "--out", str(tmp_path / "both")]) == 0
    verify_dataset(str(tmp_path / "both"))
    there = {row["key"]: row for row in rows_of(tmp_path / "both", "train")}
    assert len(there) == len([row for row in train if row["is_recaptioned"] is not False])
    assert run(["publish", both[0], "--out", str(tmp_path / "hub"), "--form", "parquet"]) == 0
    published = next((tmp_path / "hub").rglob("*.parquet"))
    assert "original_caption" in pq.read_schema(published).names


def test_a_purge_removes_the_caption_before_as_well(recaptioned, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.root, root)
    row = next(row for row in rows_of(root, "train") if row["is_recaptioned"])
    deny = tmp_path / "deny.txt"
    deny.write_text(row["url"] + "\n")
    assert run(["purge", str(root), "--deny-urls", str(deny)]) == 0
    assert row["key"] not in {one["key"] for one in rows_of(root)}
    for path in root.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            texts = {name for name in table.column_names if "caption" in name and name[-1] == "n"}
            told = {value for name in texts for value in table[name].to_pylist()}
            assert row["original_caption"] not in told
        elif path.is_file():
            assert row["original_caption"].encode() not in path.read_bytes(), path
    verify_dataset(str(root))


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(recaptioned, pairs, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.root, root)
    wanted = contents(root)
    for path in (*(root / "train").glob("*"), root / "recaptioned" / "00001.parquet"):
        path.unlink()
    stood = (root / "recaptioned" / "00000.parquet").stat().st_mtime_ns
    curate(recaptioned.config, pairs, root)
    assert contents(root) == wanted
    assert (root / "recaptioned" / "00000.parquet").stat().st_mtime_ns == stood


def test_other_settings_are_not_mixed_and_redo_gives_the_dataset_of_before(
    recaptioned, config, pairs, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(recaptioned.root, root)
    other = replace(recaptioned.config.recaption, prompt="Name it.")
    with pytest.raises(ConfigError, match=r"(?s)recaption\.prompt was .* --redo recaption"):
        curate(replace(recaptioned.config, recaption=other), pairs, root)
    with pytest.raises(ConfigError, match=r"(?s)recaption\.model was .* --redo recaption"):
        curate(config, pairs, root)
    curate(config, pairs, root, redo=Stage.RECAPTION)
    assert not list((root / "recaptioned").glob("*.parquet"))
    wanted = contents(recaptioned.before)
    assert contents(root).keys() == wanted.keys()
    train = {name for name in wanted if name.startswith("train/")}
    assert {name: contents(root)[name] for name in train} == {name: wanted[name] for name in train}


def test_what_cannot_be_recaptioned_is_said_before_any_work(config, writing, recaptioned, tmp_path):
    for change, message in (
        ({"is_scored": False}, "this recipe does not score"),
        ({"levels": replace(config.levels, by="negclip")}, "together with levels.by 'negclip'"),
        ({"recaption": replace(writing.recaption, levels=(5,))}, "names level 5, but"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(writing, **change)
    with pytest.raises(ConfigError, match="must name levels from 1"):
        replace(writing.recaption, levels=())
    with pytest.raises(ConfigError, match="prompt is empty"):
        replace(writing.recaption, prompt=" ")
    root = tmp_path / "data"
    shutil.copytree(recaptioned.before, root)
    shutil.rmtree(root / "levelled")
    with pytest.raises(DatasetError, match="recaption needs what level makes"):
        curate(writing, "none", root, [Stage.RECAPTION])
