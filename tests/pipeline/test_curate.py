"""The laws of the whole job, on real pictures over real HTTP."""

import dataclasses
import io
import json
import random
import shutil

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.dataset.worktimes import REPORT, read_times
from pipeline.job.run import Job, run_job
from pipeline.report.inspect import inspect_dataset
from pipeline.report.verify import verify_dataset
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console
from scoring.config import LevelConfig
from tests.curations import (
    INSTRUCTIONS,
    contents,
    curate,
    quiet_console,
    write_pairs,
)


def test_every_row_in_is_one_sample_or_one_rejection(curated, rows):
    root, manifest, _ = curated
    assert manifest.rows_in == len(rows)
    assert manifest.rows_in == manifest.kept + sum(manifest.rejected.values())
    assert manifest.rejected == {
        "missing_url": 1,
        "duplicate_row": 1,
        "http_status": 1,
        "not_an_image": 1,
        "decode_failed": 1,
        "forbidden_address": 2,
        "exact_duplicate": 1,
    }
    rejected = sum(pq.read_table(path).num_rows for path in (root / "rejected").rglob("*.parquet"))
    assert rejected == sum(manifest.rejected.values())


@pytest.mark.slow
def test_a_job_that_keeps_nothing_says_which_stage_rejected_all_and_why(site, config, tmp_path):
    pairs = write_pairs(tmp_path / "input", [(site.url("/gone.png"), "gone")] * 3)
    closed = dataclasses.replace(config, fetch=dataclasses.replace(config.fetch, allow_ports=()))
    said = r"fetch rejected all 1 \(forbidden_port 1\).* fetch.allow_ports .* --redo fetch"
    with pytest.raises(DatasetError, match=said):
        curate(closed, pairs, tmp_path / "out")


def test_a_folder_of_images_that_is_not_there_is_refused_before_any_work(config, tmp_path):
    read = dataclasses.replace(config.read, image_folder=str(tmp_path / "nosuch"))
    pairs = write_pairs(tmp_path / "input", [("a.png", "a picture")])
    with pytest.raises(ConfigError, match="nosuch, where images are to be, is not a folder"):
        curate(dataclasses.replace(config, read=read), pairs, tmp_path / "out")
    assert not (tmp_path / "out" / "pairs").exists()


def test_flags_that_a_runner_misses_are_an_error_before_any_work(config, pairs, tmp_path):
    with pytest.raises(ConfigError, match=r"DataflowRunner does not accept .*temp_location"):
        curate(
            config,
            pairs,
            tmp_path / "out",
            runner="DataflowRunner",
            beam_flags=("--project=p", "--region=europe-west1"),
        )


def test_every_stage_passes_on_what_it_keeps(config, curated):
    _, manifest, _ = curated
    kept = manifest.rows_in
    for stage in config.stages:
        counts = manifest.stages[stage.value]
        assert counts.rows_in == kept
        assert counts.rows_in == counts.kept + sum(counts.rejected.values())
        kept = counts.kept
    assert kept == manifest.kept


def test_the_levels_are_equally_large(curated):
    root, manifest, _ = curated
    tables = [pq.read_table(path) for path in sorted((root / "train").glob("*.parquet"))]
    levels = [level for table in tables for level in table["alignment_level"].to_pylist()]
    counts = [levels.count(level) for level in range(1, 5)]
    assert sum(counts) == manifest.kept
    assert max(counts) - min(counts) <= 1


def test_every_train_shard_but_the_last_is_full(curated):
    _, manifest, _ = curated
    sizes = [entry.samples for entry in manifest.shards]
    assert sizes[:-1] == [16] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 16


def test_the_job_ends_with_the_balance_of_every_stage(curated):
    _, _, said = curated
    assert "fetch: 46 of 46 pairs, 4 of 4 shards done, 5 rejected" in said
    assert "duplicate_row 1" in said
    assert "Done in" in said


def test_scores_of_a_model_that_knows_nothing_are_called_so(curated):
    root, manifest, said = curated
    control = manifest.score_control
    assert control.pairs == manifest.stages["score"].kept
    assert control.beats_interval[0] < 0.5 < control.beats_interval[1]
    assert control.warning is not None and control.warning in " ".join(said.split())
    page = (root / "report.html").read_text()
    assert 'class="exchanged"' in page
    assert control.warning in page
    assert Manifest.from_json((root / "manifest.json").read_text()) == manifest
    inspected = io.StringIO()
    inspect_dataset(str(root), Console(file=inspected, width=100))
    assert f"another caption {control.beats_ratio:.3f}" in " ".join(inspected.getvalue().split())


@pytest.mark.slow
def test_a_finished_job_is_not_done_again(config, pairs, curated, tmp_path):
    manifest = curated[1]
    root = shutil.copytree(curated[0], tmp_path / "data")
    files = [path for path in root.glob("*/**/*.*") if "_run" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "index.json"}
    hashes = contents(root)
    again, _ = curate(config, pairs, root)
    assert again == manifest
    assert contents(root) == hashes
    layout = DatasetLayout(str(root))
    control = [step for step in read_times(layout, REPORT) if step.step == "control"]
    assert [step.rows for step in control] == [manifest.rows_in], "of the report that stands"
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_the_order_of_the_rows_does_not_show(config, rows, curated, tmp_path):
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    curate(config, write_pairs(tmp_path / "input", shuffled), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(curated[0])


@pytest.mark.slow
def test_stages_alone_make_what_the_whole_graph_makes(config, pairs, curated, tmp_path):
    for stage in config.stages:
        curate(config, pairs, tmp_path, stages=(stage,))
    run_job(Job(root=str(tmp_path), config=config, stages=(), has_report=True), quiet_console())
    assert contents(tmp_path) == contents(curated[0])


def test_a_stage_whose_input_is_missing_says_what_to_run_first(config, pairs, tmp_path):
    with pytest.raises(DatasetError, match="no pairs: run `read` or `curate` first"):
        curate(config, pairs, tmp_path, stages=(Stage.FETCH,))
    curate(config, pairs, tmp_path, stages=(Stage.READ,))
    with pytest.raises(DatasetError, match=r"missing for 4 of 4 shards .*: run `fetch` first"):
        curate(config, pairs, tmp_path, stages=(Stage.SCORE,))


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"edges_from": "nowhere"}, r"there is no nowhere/levelled/edges\.json"),
        ({"num_levels": 5}, r"has 4 levels, levels\.num_levels is 5"),
        ({"per_source": True}, r"levels\.per_source is True"),
    ],
)
def test_edges_that_do_not_fit_stop_the_job_before_it_fetches_or_removes_anything(
    config, curated, pairs, tmp_path, levels, said
):
    root = shutil.copytree(curated[0], tmp_path / "old")
    settings = {"num_levels": 4, "edges_from": str(root), **levels}
    wrong = dataclasses.replace(config, levels=LevelConfig(**settings))
    with pytest.raises(ConfigError, match=said):
        curate(wrong, pairs, tmp_path / "new")
    assert not (tmp_path / "new" / "pairs").exists()
    before = contents(root)
    with pytest.raises(ConfigError, match=said):
        curate(wrong, pairs, root, redo=Stage.LEVEL)
    assert contents(root) == before


def test_a_search_on_a_gpu_that_is_not_there_stops_the_job_before_it_fetches(
    config, pairs, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    search = dataclasses.replace(config.deduplicate, device="cuda")
    with pytest.raises(ConfigError, match=r"deduplicate\.device is cuda"):
        curate(dataclasses.replace(config, deduplicate=search), pairs, tmp_path)
    assert not (tmp_path / "pairs").exists()


@pytest.mark.slow
def test_another_configuration_is_refused_and_redo_makes_room_for_it(
    config, pairs, curated, tmp_path
):
    root = shutil.copytree(curated[0], tmp_path / "old")
    finer = dataclasses.replace(config, levels=LevelConfig(num_levels=5))
    before = contents(root)
    with pytest.raises(ConfigError, match=r"levels\.num_levels was 4 there, this run has 5"):
        curate(finer, pairs, root)
    assert contents(root) == before
    manifest, _ = curate(finer, pairs, root, redo=Stage.LEVEL)
    assert manifest.num_levels == 5
    verify_dataset(str(root))


@pytest.mark.slow
def test_other_rows_are_refused_and_nothing_is_changed(config, rows, curated, tmp_path):
    root = shutil.copytree(curated[0], tmp_path / "data")
    before = contents(root)
    with pytest.raises(ConfigError, match="was made from other rows"):
        curate(config, write_pairs(tmp_path / "input", rows[:30]), root)
    assert contents(root) == before


def test_a_model_that_is_not_there_is_a_configuration_error(config, pairs, tmp_path):
    nowhere = dataclasses.replace(config.score, model=f"local-dir:{tmp_path}/none")
    with pytest.raises(ConfigError, match="none"):
        curate(dataclasses.replace(config, score=nowhere), pairs, tmp_path / "out")


@pytest.mark.slow
def test_verify_finds_a_flipped_bit(config, pairs, tmp_path):
    curate(config, pairs, tmp_path)
    assert verify_dataset(str(tmp_path)).samples > 30
    tar = tmp_path / "train" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match=r"train/000001\.tar has .* recorded"):
        verify_dataset(str(tmp_path))


@pytest.mark.slow
def test_instruction_samples_are_packed_unscored(tmp_path):
    bundled = json.loads((INSTRUCTIONS / "instructions.json").read_text())
    samples = [*bundled[:17], *bundled[-3:]]  # the last ones have two pictures
    turns = [{"from": "human", "value": "Say hello."}, {"from": "gpt", "value": "Hello."}]
    samples.append({"id": "text", "conversations": turns})
    (tmp_path / "few.json").write_text(json.dumps(samples))
    config = CurationConfig(
        read=ReadConfig(image_folder=str(INSTRUCTIONS.parent)),
        fetch=FetchConfig(decode_processes=1),
        is_scored=False,
    )
    manifest, _ = curate(config, tmp_path / "few.json", tmp_path / "out")
    assert manifest.kept == manifest.rows_in == 21
    table = pq.read_table(tmp_path / "out" / "train" / "000000.parquet")
    assert table["alignment_level"].null_count == 21
    texts_alone = sum("image" not in sample for sample in samples)
    assert table["image_offset"].null_count == texts_alone
    assert table["more_image_offsets"].null_count == 18
    assert not (tmp_path / "out" / "scored").exists()
    verify_dataset(str(tmp_path / "out"))
