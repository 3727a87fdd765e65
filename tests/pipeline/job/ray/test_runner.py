"""Pipelines on a small Ray cluster of this machine: two nodes with addresses of their own."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'aligngpt[ray]'")

from ray._private.state import GlobalState

from pipeline.dataset.progress import ProgressReader
from schemas.memory import AT_START
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curations import ROOT, contents, curate, finish, start_words, wait_for_progress
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[RayCluster]:
    """A cluster of two nodes of one CPU, one with a logical GPU."""
    found = RayCluster(tmp_path_factory.mktemp("ray"), {}, cpus=1)
    try:
        found.add_node(1, "--num-gpus=1")
        yield found
    finally:
        found.stop()


def test_steps_with_a_hint_have_a_gpu_and_all_others_have_none(cluster, tmp_path):
    """In a process of its own, for Ray holds on to the one that it was connected in."""
    out = tmp_path / "seen.json"
    command = [sys.executable, str(Path(__file__).parent / "gpu_steps.py"), cluster.address, out]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(out.read_text())
    told = list(AT_START.values())
    assert [row[:2] for row in seen["plain"]] == [["plain", ["", *told]]] * 20
    assert [row[:2] for row in seen["hinted"]] == [["hinted", ["0", *told]]] * 20
    assert sorted(number for *_, number in seen["hinted"]) == list(range(20))
    processes = {name: {process for *_, process, _ in rows} for name, rows in seen.items()}
    assert processes["plain"].isdisjoint(processes["hinted"])
    assert len(processes["hinted"]) == 1
    assert seen["said"] == []


def fetch_on(cluster: RayCluster, flags, pairs, root: Path, workers: int):
    """Returns the running first stages, which need no model, on a cluster."""
    own, is_own = [], False
    for word in flags:
        is_own = word.startswith(("--read", "--fetch")) if word.startswith("--") else is_own
        own += [word] if is_own else []
    words = ["--pairs", str(pairs), "--out", str(root), "--workers", str(workers), *own]
    on_ray = ["--runner", "ray", "--ray-address", cluster.address]
    return start_words(["fetch", *words, *on_ray], is_warm=False)


SECRETS = {
    **{name: f"secret-of-{name}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")},
    **{name: f"secret-of-{name}" for name in ("HF_TOKEN", "FSSPEC_SFTP_PASSWORD")},
    "ALIGNGPT_PROXY_CREDENTIALS": "me:secret-of-ALIGNGPT_PROXY_CREDENTIALS",
    "ALIGNGPT_API_KEY": "secret-of-ALIGNGPT_API_KEY",
}
"""Variables of the driver's environment alone, of which nothing is handed on."""


def metadata_of(cluster: RayCluster) -> bytes:
    """Returns what a cluster tells everybody of its jobs, actors and workers, of the past too."""
    state, compiled = GlobalState(), importlib.import_module("ray._raylet")
    given = compiled.GcsClientOptions.create(cluster.address, None, True, False)
    state._initialize_global_state(given)
    try:
        told = state._connect_and_get_accessor()
        jobs = told.get_job_table(
            skip_submission_job_info_field=False, skip_is_running_tasks_field=True
        )
        return b"\n".join([*jobs, *told.get_actor_table(None, None), *told.get_worker_table()])
    finally:
        state.disconnect()


def test_a_job_whose_worker_is_killed_goes_on_and_makes_the_bytes_of_one_machine(
    cluster, flags, config, pairs, tmp_path, monkeypatch
):
    """More workers than there is room for, a relative path, and one of the workers killed.

    No secret of the driver's environment is in what Ray knows, in its logs or in the dataset.
    """
    root, alone = tmp_path / "out", tmp_path / "alone"
    curate(config, pairs, alone, stages=(Stage.READ, Stage.FETCH))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    job = fetch_on(cluster, flags, os.path.relpath(pairs), root, workers=9)
    wait_for_progress(job, root, Stage.FETCH)
    states = ProgressReader(DatasetLayout(str(root))).read()
    with suppress(ProcessLookupError):  # on a busy machine the job may be over by now
        os.kill(next(one.process for one in states if one.stage is Stage.FETCH), signal.SIGKILL)
    status, said = finish(job)
    assert status == 0, said
    assert "have room for 2 workers of 1 CPUs (9 asked for)" in said
    assert contents(root) == contents(alone)
    known = metadata_of(cluster)
    assert b"--ray-address" in known and b"BeamWorker" in known
    left = [*cluster.logs(), *(path for path in root.rglob("*") if path.is_file())]
    assert any(path.name.startswith("worker-") for path in left)
    told = [known, said.encode(), *(path.read_bytes() for path in left)]
    assert not any(b"secret-of-" in one for one in told)
