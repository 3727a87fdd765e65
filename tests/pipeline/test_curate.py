"""The laws of the whole job, on real pictures over real HTTP."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.cli import parse
from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.job import Job, run_job
from pipeline.progress import ProgressReader
from pipeline.verify import verify_dataset
from schemas.errors import ConfigError, DatasetError, Stage
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig
from tests.web_server import ALLOWED_HOST, WebServer

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "examples" / "corpus"
INSTRUCTIONS = ROOT / "examples" / "instructions"
COMMAND = Path(sys.executable).parent / "aligngpt-curate"


@pytest.fixture(scope="module")
def site():
    """A web site with stamps of the bundled corpus, one of them twice, and faults."""
    server = WebServer().start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def rows(site):
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        stamps = list(csv.DictReader(file, delimiter="\t"))[:40]
    pairs = [
        (site.serve(f"/{number}.png", (CORPUS / stamp["file"]).read_bytes()), stamp["caption"])
        for number, stamp in enumerate(stamps)
    ]
    picture = (CORPUS / stamps[0]["file"]).read_bytes()
    return [
        *pairs,
        pairs[5],
        (site.serve("/again.png", picture), "the same picture elsewhere"),
        (site.url("/gone.png"), "a picture that is gone"),
        (site.serve("/page.png", b"<!doctype html><p>no picture"), "a page"),
        (site.serve("/half.png", picture[: len(picture) // 2]), "half a picture"),
        (site.redirect("/inside", "http://10.0.0.1/secret.png"), "a private address"),
        ("http://127.0.0.3/x.png", "a forbidden address"),
        ("", "no address"),
    ]


@pytest.fixture(scope="module")
def pairs(rows, tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("input"), rows)


def write_pairs(folder, rows):
    path = folder / "pairs.tsv"
    folder.mkdir(exist_ok=True)
    path.write_text("".join(f"{url}\t{caption}\n" for url, caption in [("url", "caption"), *rows]))
    return path


@pytest.fixture(scope="module")
def flags(site, tiny_clip):
    """The configuration as words of the command line."""
    words = (
        f"--read.pairs-per-shard 12 --pack.samples-per-shard 16 --levels.num-levels 4 "
        f"--deduplicate.threshold 2.0 --fetch.connections 8 --fetch.timeout-seconds 5 "
        f"--fetch.retries 0 --fetch.allow-networks {ALLOWED_HOST}/32 --fetch.allow-ports 80 "
        f"{site.port} --fetch.decode-processes 1 --fetch.image-size 48 --score.device cpu "
        f"--score.model local-dir:{tiny_clip.folder} --score.batch-size 4 --score.threads 1 "
        f"--score.decode-threads 1"
    )
    return words.split()


@pytest.fixture(scope="module")
def config(flags):
    return parse(["curate", "--pairs", "none", "--out", "none", *flags]).config


def curate(config, pairs, root, stages=None, **settings):
    """Returns the manifest of a curation in this process, and what it said."""
    written = io.StringIO()
    job = Job(
        root=str(root),
        config=config,
        stages=config.stages if stages is None else stages,
        files=(str(pairs),),
        has_report=stages is None,
        **settings,
    )
    return run_job(job, Console(file=written, width=200)), written.getvalue()


@pytest.fixture(scope="module")
def curated(config, pairs, tmp_path_factory):
    """An undisturbed curation by one worker: its folder, its manifest and what it said."""
    root = tmp_path_factory.mktemp("curated")
    manifest, said = curate(config, pairs, root)
    return root, manifest, said


def contents(root, folders=("pairs", "fetched", "scored", "unique", "levelled", "train")):
    """Returns the hash of every file of a dataset but of those that tell times."""
    files = [path for folder in (*folders, "rejected") for path in (root / folder).rglob("*")]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, root / "manifest.json"]
        if path.is_file() and not path.name.endswith("_stats.json")
    }


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


def test_every_stage_passes_on_what_it_keeps(curated):
    _, manifest, _ = curated
    kept = manifest.rows_in
    for stage in Stage:
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


def test_a_finished_job_is_not_done_again(config, pairs, curated):
    root, manifest, _ = curated
    files = [path for path in root.glob("*/**/*.*") if "_run" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "index.json"}
    hashes = contents(root)
    again, _ = curate(config, pairs, root)
    assert again == manifest
    assert contents(root) == hashes
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_order_of_the_rows_does_not_show(config, rows, curated, tmp_path):
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    curate(config, write_pairs(tmp_path / "input", shuffled), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(curated[0])


def test_stages_alone_make_what_the_whole_graph_makes(config, pairs, curated, tmp_path):
    for stage in Stage:
        curate(config, pairs, tmp_path, stages=(stage,))
    run_job(Job(root=str(tmp_path), config=config, stages=(), has_report=True), quiet())
    assert contents(tmp_path) == contents(curated[0])


def quiet():
    return Console(file=io.StringIO())


def test_a_stage_whose_input_is_missing_says_what_to_run_first(config, pairs, tmp_path):
    with pytest.raises(DatasetError, match="no pairs: run `read` or `curate` first"):
        curate(config, pairs, tmp_path, stages=(Stage.FETCH,))
    curate(config, pairs, tmp_path, stages=(Stage.READ,))
    with pytest.raises(DatasetError, match=r"missing for 4 of 4 shards .*: run `fetch` first"):
        curate(config, pairs, tmp_path, stages=(Stage.SCORE,))


def test_another_configuration_is_refused_and_redo_makes_room_for_it(
    config, pairs, curated, tmp_path
):
    root = curated[0]
    finer = dataclasses.replace(config, levels=LevelConfig(num_levels=5))
    before = contents(root)
    with pytest.raises(ConfigError, match=r"levels\.num_levels was 4 there, this run has 5"):
        curate(finer, pairs, root)
    assert contents(root) == before
    curate(config, pairs, tmp_path)
    manifest, _ = curate(finer, pairs, tmp_path, redo=Stage.LEVEL)
    assert manifest.num_levels == 5
    verify_dataset(str(tmp_path))


def test_other_rows_are_refused_and_nothing_is_changed(config, rows, curated, tmp_path):
    root = curated[0]
    before = contents(root)
    with pytest.raises(ConfigError, match="was made from other rows"):
        curate(config, write_pairs(tmp_path / "input", rows[:30]), root)
    assert contents(root) == before


def test_a_model_that_is_not_there_is_a_configuration_error(config, pairs, tmp_path):
    nowhere = dataclasses.replace(config.score, model=f"local-dir:{tmp_path}/none")
    with pytest.raises(ConfigError, match="none"):
        curate(dataclasses.replace(config, score=nowhere), pairs, tmp_path / "out")


def test_verify_finds_a_flipped_bit(config, pairs, tmp_path):
    curate(config, pairs, tmp_path)
    assert verify_dataset(str(tmp_path)).samples > 30
    tar = tmp_path / "train" / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DatasetError, match=r"train/000001\.tar has .* recorded"):
        verify_dataset(str(tmp_path))


def test_instruction_samples_are_packed_unscored(tmp_path):
    samples = json.loads((INSTRUCTIONS / "instructions.json").read_text())[:20]
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
    assert not (tmp_path / "out" / "scored").exists()
    verify_dataset(str(tmp_path / "out"))


def start_command(flags, pairs, root, workers):
    """Returns the running command, in a process group of its own."""
    words = ["curate", "--pairs", pairs, "--out", root, "--workers", workers, *flags]
    return subprocess.Popen(
        [COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    said, _ = process.communicate(timeout=300)
    return process.returncode, " ".join(said.split())


@pytest.mark.slow
def test_two_workers_make_the_same_bytes_as_one(flags, pairs, curated, tmp_path):
    status, said = finish(start_command(flags, pairs, tmp_path, workers=2))
    assert status == 0, said
    assert contents(tmp_path) == contents(curated[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_killed_again_and_again_makes_the_same_bytes(
    flags, pairs, curated, tmp_path, workers
):
    for stage in (Stage.READ, Stage.FETCH, Stage.SCORE, Stage.LEVEL, Stage.PACK):
        process = start_command(flags, pairs, tmp_path, workers)
        wait_for_progress(process, tmp_path, stage)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    status, said = finish(start_command(flags, pairs, tmp_path, workers))
    assert status == 0, said
    assert contents(tmp_path) == contents(curated[0])


def wait_for_progress(process, root, stage):
    """Returns once a stage has begun, or the process has ended."""
    while process.poll() is None:
        if any((root / "_run" / "progress").glob(f"{stage.value}-*.json")):
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_job_by_name_and_a_rerun_goes_on(
    flags, rows, site, curated, tmp_path
):
    hanging = site.hang("/hang")
    pairs = write_pairs(tmp_path / "input", [*rows, (hanging, "never answered")])
    process = start_command(flags, pairs, tmp_path / "out", workers=2)
    worker = wait_for_worker(process, tmp_path / "out", Stage.FETCH, hanging)
    worker.kill()
    killed_at = time.monotonic()
    status, said = finish(process)
    assert time.monotonic() - killed_at < 60
    assert status == 1
    assert f"a worker died hard (process {worker.pid}): shard 0000" in said
    assert "in stage fetch" in said
    status, said = finish(start_command(flags, pairs, tmp_path / "out", workers=2))
    assert status == 0, said
    assert verify_dataset(str(tmp_path / "out")).samples == curated[1].kept


def wait_for_worker(process, root, stage, url):
    """Returns the worker process that has begun the shard with this URL and is not done with it."""
    layout = DatasetLayout(str(root))
    while process.poll() is None:
        for state in ProgressReader(layout).read():
            if state.stage is stage and state.state == "running":
                urls = pq.read_table(layout.pairs(state.shard), columns=["url"])["url"]
                if url not in urls.to_pylist():
                    continue
                return psutil.Process(state.process)
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_a_second_job_on_the_folder_is_refused(flags, pairs, rows, site, tmp_path):
    slow = write_pairs(tmp_path / "input", [*rows, (site.hang("/hang"), "never answered")])
    # Long enough for the second job to start while the first still waits.
    patient = [*flags, "--fetch.timeout-seconds", "30"]
    first = start_command(patient, slow, tmp_path / "out", workers=1)
    wait_for_progress(first, tmp_path / "out", Stage.FETCH)
    status, said = finish(start_command(patient, slow, tmp_path / "out", workers=1))
    assert status == 2
    assert f"another job works on {tmp_path}/out (process {first.pid} on" in said
    status, said = finish(first)
    assert status == 0, said
