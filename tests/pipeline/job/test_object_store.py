"""A dataset on an object store: a local S3 server stands in for one."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from pipeline.cli import run
from pipeline.dataset.deny import DenyFiles
from pipeline.job import remote_lock
from pipeline.job.holder import Holder, this_process
from pipeline.job.lock import hold_folder
from pipeline.job.remote_lock import claim_path
from pipeline.plan.rates import rates_of
from pipeline.publish.card import About
from pipeline.publish.run import publish_dataset
from pipeline.purge.run import purge_dataset
from pipeline.recipes import llava_instructions
from pipeline.report.verify import verify_dataset
from pipeline.select.run import Selection, make_selection
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_file,
    commit_text,
    exists,
    list_files,
    move_file,
    open_read,
    read_bytes,
    remove,
)
from tests.curations import (
    Running,
    contents,
    curate,
    finish,
    kill,
    quiet_console,
    start_command,
    start_words,
    write_pairs,
)
from tests.datasets import finish as finish_dataset
from tests.datasets import write_dataset
from tests.fetches import picture
from tests.pipeline.job.test_retry_job import retried_once
from tests.web_server import unused_port
from training.data.dataset import TrainDataset, open_images

POLL_SECONDS = 0.2
"""The store that is asked stands beside the job on the same cores."""


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Returns what a process must know to reach the store, which is up while the tests run."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def bucket(environment, monkeypatch: pytest.MonkeyPatch, request) -> Iterator[str]:
    """Returns the URL of a new bucket that this process and its children can reach."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"bucket{abs(hash(request.node.name))}"
    store.mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def download(root: str, folder: Path) -> Path:
    """Returns a local copy of a dataset on the store."""
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.get(root.removeprefix("s3://"), str(folder), recursive=True)
    return folder


def test_a_file_on_the_store_appears_whole_or_not_at_all(bucket: str) -> None:
    path = f"{bucket}/data/file"
    with pytest.raises(ZeroDivisionError), commit_file(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert not exists(path)
    commit_text(path, "whole")
    with pytest.raises(ZeroDivisionError), commit_file(path) as file:
        file.write(b"half of the next")
        raise ZeroDivisionError
    with open_read(path) as file:
        assert file.read() == b"whole"


def test_what_another_process_wrote_a_moment_ago_is_seen(bucket: str) -> None:
    commit_text(f"{bucket}/data/one", "")
    assert list_files(f"{bucket}/data") == [f"{bucket}/data/one"]
    assert not exists(f"{bucket}/data/two")
    other = s3fs.S3FileSystem(skip_instance_cache=True)
    other.pipe_file(f"{bucket}/data/two", b"2")
    assert exists(f"{bucket}/data/two")
    assert list_files(f"{bucket}/data") == [f"{bucket}/data/one", f"{bucket}/data/two"]


def test_a_file_is_moved_over_another_once_and_again(bucket: str) -> None:
    commit_text(f"{bucket}/new", "new")
    commit_text(f"{bucket}/old", "old")
    for _ in range(2):
        move_file(f"{bucket}/new", f"{bucket}/old")
        with open_read(f"{bucket}/old") as file:
            assert file.read() == b"new"
        assert not exists(f"{bucket}/new")


def test_a_bucket_that_is_not_there_is_refused_with_what_to_check(bucket: str) -> None:
    with pytest.raises(StorageError, match="Check that the bucket exists"):
        commit_text("s3://no-such-bucket-here/file", "")
    layout = DatasetLayout("s3://no-such-bucket-here/data")
    with pytest.raises(ConfigError, match="cannot work on s3://no-such-bucket"):
        hold_folder(layout).__enter__()


@pytest.mark.slow
def test_a_dataset_made_on_the_store_from_pairs_on_it_is_the_local_one(
    bucket: str, config, pairs: Path, curated, tmp_path: Path
) -> None:
    with commit_file(f"{bucket}/input/pairs.tsv") as file:
        file.write(pairs.read_bytes())
    root = f"{bucket}/data"
    manifest, said = curate(config, f"{bucket}/input/pairs.tsv", root)
    assert manifest is not None
    assert manifest.shards == curated[1].shards
    assert "Done in" in said
    assert verify_dataset(root).samples == manifest.kept
    there, here = rates_of(root), rates_of(str(curated[0]))
    assert [stage.rows_in for stage in there.stages] == [stage.rows_in for stage in here.stages]
    assert there.stages[1].stored_bytes == pytest.approx(here.stages[1].stored_bytes, rel=0.01)
    assert contents(download(root, tmp_path / "copy")) == contents(curated[0])
    train_as_from_a_folder(root, str(curated[0]))
    spoil(f"{root}/train/000001.tar")
    with pytest.raises(DatasetError, match=r"train/000001\.tar has"):
        verify_dataset(root)


@pytest.mark.slow
def test_images_that_lie_on_the_store_are_read_from_there_alone(
    bucket: str, tmp_path: Path
) -> None:
    for number, name in enumerate(("in/a.jpg", "in/b.jpg", "out.jpg", "in.jpg")):
        with commit_file(f"{bucket}/{name}") as file:
            file.write(picture(number))
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    names = ("a.jpg", "b.jpg", "gone.jpg", "../out.jpg", f"{bucket}/out.jpg", f"{bucket}/in/a::x")
    records = [{"image": name, "conversations": turns} for name in names]
    commit_text(f"{bucket}/in/llava.json", json.dumps(records))
    manifest, _ = curate(llava_instructions(), f"{bucket}/in/llava.json", tmp_path / "out")
    assert manifest is not None
    assert manifest.kept == 2
    assert manifest.rejected == {"file_not_found": 3, "forbidden_scheme": 1}


def train_as_from_a_folder(root: str, folder: str) -> None:
    """The trainer reads the same samples and pixels from the store as from the disk."""
    remote, local = TrainDataset([root]), TrainDataset([folder])
    assert len(remote) == len(local) > 30
    for index in range(0, len(local), 7):
        assert remote[index].key == local[index].key
        assert np.array_equal(open_images(remote[index]), open_images(local[index]))


def spoil(path: str) -> None:
    with open_read(path) as file:
        data = bytearray(file.read())
    data[700] ^= 1
    with commit_file(path) as file:
        file.write(data)


@pytest.mark.slow
def test_a_job_on_the_store_that_is_killed_again_and_again_makes_the_same_bytes(
    bucket: str, flags, pairs: Path, curated, tmp_path: Path
) -> None:
    root = f"{bucket}/data"
    for number, stage in enumerate((Stage.FETCH, Stage.SCORE, Stage.LEVEL, Stage.PACK)):
        process = start_command(flags, pairs, root, workers=1 + number % 2)
        wait_for_progress(process, root, stage)
        kill(process)
    status, said = finish(start_command(flags, pairs, root, workers=1))
    assert status == 0, said
    assert contents(download(root, tmp_path / "copy")) == contents(curated[0])


def wait_for_progress(process: Running, root: str, stage: Stage) -> None:
    """Returns once a stage has begun, or the process has ended."""
    while process.poll() is None:
        if any(f"/{stage.value}-" in path for path in list_files(f"{root}/_run/progress")):
            return
        time.sleep(POLL_SECONDS)


@pytest.mark.slow
def test_a_retry_on_the_store_gains_what_failed_also_when_it_is_killed(
    bucket: str, config, site, tmp_path: Path
) -> None:
    def serve(number: int, is_broken: bool) -> str:
        status = 500 if is_broken else 200
        return site.serve(f"/store/{number}.jpg", picture(2000 + number), status=status)

    rows = [(serve(number, number % 3 == 0), f"picture {number}") for number in range(24)]
    pairs, root = write_pairs(tmp_path / "input", rows), f"{bucket}/data"
    manifest, _ = curate(config, pairs, root)
    assert manifest is not None
    assert manifest.rejected == {"server_error": 8}
    for number in range(24):
        serve(number, is_broken=False)
    for stage in (Stage.FETCH, Stage.PACK):
        before = news(root, stage)
        job = start_words(["retry", root])
        while job.poll() is None and news(root, stage).items() <= before.items():
            time.sleep(POLL_SECONDS)
        kill(job)
    status, said = finish(start_words(["retry", root]))
    assert status == 0, said
    assert retried_once(download(root, tmp_path / "copy")) == {"asked": 8, "gained": 8}
    assert verify_dataset(root).samples == 24
    assert not list_files(f"{root}/_run/retry")


def news(root: str, stage: Stage) -> dict[str, str]:
    """Returns the state of each file in which a stage tells of its progress."""
    store = s3fs.S3FileSystem(use_listings_cache=False)
    files = store.find(f"{root.removeprefix('s3://')}/_run/progress", detail=True)
    return {path: file["ETag"] for path, file in files.items() if f"/{stage.value}-" in path}


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "s3"])
def test_a_users_files_on_a_store_are_never_changed_or_removed(
    store: str, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"{bucket if store == 's3' else 'memory://owned'}/data"
    longer = write_pairs(tmp_path / "longer", [(f"https://x.example/{n}", "x") for n in range(9)])
    shorter = write_pairs(tmp_path / "shorter", [("https://x.example/0", "x")])
    read = f"read --out {root} --read.pairs-per-shard 4 --pairs"
    assert run(f"{read} {longer}".split()) == 0
    commands = (f"{read} {longer}", f"{read} {longer} --redo read", f"retry {root}",
                f"report --out {root}", f"{read} {root}/pairs/*.parquet")  # fmt: skip
    for name in ("pairs/00003.parquet", "fetched/00000.tar", "train/000000.tar"):
        commit_text(f"{root}/{name}", "mine")
        for words in commands:
            assert run(words.split()) == 2, words
            said = " ".join(capsys.readouterr().err.split())
            assert (name in said and "move them elsewhere" in said) or "an input, lies in" in said
        assert read_bytes(f"{root}/{name}") == b"mine"
        remove(f"{root}/{name}")
    others = [f"{root}/pairs/notes.md", f"{root}/train/README.md"]
    for path in others:
        commit_text(path, "mine")
    assert run(f"{read} {shorter}".split()) == 0
    assert list_files(f"{root}/pairs") == [f"{root}/pairs/00000.parquet", others[0]]
    assert [read_bytes(path) for path in others] == [b"mine"] * 2
    commit_text(f"{root}/pairs/00000.parquet", "mine, in place of ours")
    assert run(f"{read} {longer}".split()) == 2
    assert read_bytes(f"{root}/pairs/00000.parquet") == b"mine, in place of ours"


@pytest.mark.slow
def test_a_second_job_on_a_folder_of_the_store_is_refused(
    bucket: str, flags, rows, site, tmp_path: Path
) -> None:
    slow = write_pairs(tmp_path / "input", [*rows, (site.hang("/hang"), "never answered")])
    root = f"{bucket}/data"
    patient = [*flags, "--fetch.timeout-seconds", "40"]
    first = start_command(patient, slow, root, workers=1)
    wait_for_progress(first, root, Stage.FETCH)
    status, said = finish(start_command(patient, slow, root, workers=1))
    assert status == 2, said
    assert f"another job works on {root} (process {first.pid} on" in said
    kill(first)
    with hold_folder(DatasetLayout(root)) as left_behind:
        assert left_behind is not None
        assert left_behind.process == first.pid


def test_a_store_that_nobody_answers_for_is_named_with_what_to_check(
    environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    unheard = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{unused_port('127.0.0.1')}",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in {**environment, **unheard}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    for ask in (lambda path: open_read(path).read(), exists, list_files, remove):
        with pytest.raises(StorageError, match=r"cannot reach s3://there/file: .*credentials"):
            ask("s3://there/file")
    with pytest.raises(StorageError, match="cannot reach s3://there/file"):
        commit_text("s3://there/file", "")
    with pytest.raises(ConfigError, match="cannot work on s3://there/data: cannot reach"):
        hold_folder(DatasetLayout("s3://there/data")).__enter__()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_job_without_credentials_is_told_so(
    environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConfigError, match="NoCredentialsError"):
        hold_folder(DatasetLayout("s3://there/data")).__enter__()
    s3fs.S3FileSystem.clear_instance_cache()


def lock_of(root: str) -> str:
    return f"{root}/_run/lock.json"


def on_a_host_of_its_own() -> Holder:
    return replace(this_process(), host=f"host of {threading.get_ident()}")


@pytest.mark.parametrize(
    "left",
    [
        None,
        '{"host": "gone", "process": 1, "since": "", "token": "t", "seen_unix_seconds": 0}',
        '{"host": "go',
    ],
    ids=["new", "dead", "cut short"],
)
def test_of_jobs_that_begin_at_once_one_has_the_folder(
    bucket: str, monkeypatch: pytest.MonkeyPatch, left: str | None
) -> None:
    """All see what is there, then each writes, and none waits to see who writes over its name."""
    monkeypatch.setattr("pipeline.job.remote_lock.SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.job.remote_lock.this_process", on_a_host_of_its_own)
    jobs = 6
    looked, end, turn = threading.Barrier(jobs), threading.Barrier(jobs), threading.Lock()
    create, created = remote_lock._create, list[bool]()

    def look_together(path: str) -> bool:
        found = exists(path)
        looked.wait()
        return found

    def create_in_turn(path: str, mine: Holder) -> bool:
        with turn:
            created.append(create(path, mine))
            return created[-1]

    monkeypatch.setattr("pipeline.job.remote_lock.exists", look_together)
    monkeypatch.setattr("pipeline.job.remote_lock._create", create_in_turn)
    if left is not None:
        commit_text(lock_of(bucket), left)

    def hold(number: int) -> bool:
        with ExitStack() as held:
            try:
                held.enter_context(hold_folder(DatasetLayout(bucket)))
                return True
            except ConfigError as refused:
                assert "another job works on" in str(refused)
                return False
            finally:
                end.wait()

    with ThreadPoolExecutor(jobs) as pool:
        assert sorted(pool.map(hold, range(jobs))) == [False] * (jobs - 1) + [True]
    assert created == [True] + [False] * (jobs - 1) or left is not None
    assert list_files(f"{bucket}/_run") == []


def test_a_claim_that_a_dead_job_left_does_not_keep_the_folder(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.remote_lock.SETTLE_SECONDS", 0.0)
    dead = Holder(host="gone", process=1, since="", token="t", seen_unix_seconds=0.0)
    commit_text(lock_of(bucket), dead.to_json())
    commit_text(claim_path(DatasetLayout(bucket), dead), replace(dead, token="u").to_json())
    with hold_folder(DatasetLayout(bucket)) as left_behind:
        assert left_behind == dead
    assert list_files(f"{bucket}/_run") == []


HOLD = """
import sys, time, pipeline.job.lock, pipeline.job.remote_lock
from schemas.shards import DatasetLayout
pipeline.job.remote_lock.HEARTBEAT_SECONDS = 0.2
pipeline.job.remote_lock.STALE_SECONDS = float(sys.argv[2])
with pipeline.job.lock.hold_folder(DatasetLayout(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold_on_store(root: str, stale_seconds: float) -> subprocess.Popen[bytes]:
    """Returns a job that holds a folder until it is told to end."""
    pipe = subprocess.PIPE
    job = subprocess.Popen(
        [sys.executable, "-c", HOLD, root, str(stale_seconds)],
        env={**os.environ, "AWS_MAX_ATTEMPTS": "1"},
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"held\n"
    return job


def last_words(job: subprocess.Popen[bytes]) -> bytes:
    """Returns what a job said that ended by itself; ends it if it does not."""
    try:
        job.wait(timeout=120)
    finally:
        job.kill()
        _, said = job.communicate()
    return said


@pytest.fixture
def own_server(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """Returns a second door to the same store, which a test may close."""
    server = ThreadedMotoServer("127.0.0.1", unused_port("127.0.0.1"), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    yield server
    server.stop()


@pytest.mark.slow
def test_a_holder_outlives_a_time_without_the_store(
    bucket: str, own_server: ThreadedMotoServer
) -> None:
    job = hold_on_store(bucket, stale_seconds=60.0)
    own_server.stop()
    time.sleep(1.0)
    own_server.start()
    path = lock_of(bucket)
    back_at = time.time()
    while last_seen(path) < back_at:
        assert job.poll() is None
        assert time.time() < back_at + 120, "the holder gives no more signs of life"
        time.sleep(0.1)
    _, said = job.communicate(b"\n", timeout=120)
    assert (job.returncode, said) == (0, b"")
    assert not exists(path)


def last_seen(path: str) -> float:
    return float(json.loads(read_bytes(path))["seen_unix_seconds"])


@pytest.mark.slow
def test_a_holder_whose_store_does_not_answer_ends_before_it_counts_as_dead(
    bucket: str, own_server: ThreadedMotoServer
) -> None:
    job = hold_on_store(bucket, stale_seconds=3.0)
    address = own_server.get_host_and_port()
    own_server.stop()
    with socket.create_server(address):  # takes connections and says nothing
        said = last_words(job)
    own_server.start()
    assert job.returncode == 1
    assert b"the store has been out of reach for too long" in said


@pytest.mark.slow
def test_a_job_that_was_replaced_ends_at_once_and_leaves_the_lock_to_the_other(bucket: str) -> None:
    job = hold_on_store(bucket, stale_seconds=60.0)
    path = lock_of(bucket)
    with open_read(path) as file:
        values = json.load(file)
    other = {**values, "host": "elsewhere", "token": "another"}
    commit_text(path, json.dumps(other))
    said = last_words(job)
    assert job.returncode == 1
    assert b"lost its hold of the folder to process" in said
    with open_read(path) as file:
        assert json.load(file) == other


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what mlcroissant uses
def test_a_dataset_on_the_store_is_chosen_from_given_away_purged_and_verified_there(
    bucket: str, tmp_path: Path
) -> None:
    local, root = tmp_path / "data", f"{bucket}/data"
    write_dataset(local)
    finish_dataset(local)
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.put(str(local), root.removeprefix("s3://"), recursive=True)
    for parent, out in ((str(local), str(tmp_path / "chosen")), (root, f"{bucket}/chosen")):
        chosen = Selection(command="select", parents=(parent,), where="alignment_level >= 3")
        make_selection(chosen, out, quiet_console())
    for folder, out in ((str(local), str(tmp_path / "hub")), (root, f"{bucket}/hub")):
        about = About(name="hub", form="webdataset", licence="other", language=("en",))
        publish_dataset(folder, out, about, 0.2, None, quiet_console())
    chosen_there = download(f"{bucket}/chosen", tmp_path / "chosen there")
    assert bytes_of(chosen_there / "train") == bytes_of(tmp_path / "chosen" / "train")
    assert bytes_of(download(f"{bucket}/hub", tmp_path / "hub there")) == bytes_of(tmp_path / "hub")
    commit_text(f"{bucket}/lists/urls", "https://images.example/20.jpg\n")
    purge_dataset(root, DenyFiles(urls=(f"{bucket}/lists/urls",)), quiet_console())
    assert verify_dataset(root).samples == verify_dataset(str(local)).samples - 1
    assert verify_dataset(root, is_quick=True).is_quick
    assert verify_dataset(f"{bucket}/chosen").samples > 0
    spoil(f"{root}/train/000001.tar")
    with pytest.raises(DatasetError, match=r"train/000001\.tar has"):
        verify_dataset(root, is_quick=True)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Returns what the files of a folder hold, but for the record of who writes to it."""
    files = [path for path in folder.rglob("*") if path.is_file() and "_run" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
