"""One input and one configuration make one dataset, on any runner and with any parallelism."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.dataset.progress import ProgressReader
from schemas.shards import DatasetLayout
from tests.curations import contents, finish, start_command, write_pairs
from tests.web_server import unused_port


@pytest.fixture
def portable_flags(tmp_path: Path) -> Iterator[list[str]]:
    """Returns Beam's flags for a job service and a pool of workers, both of this machine.

    It is what a worker of Flink or Dataflow sees: graph, functions and data come over the network
    from a service that shares no process with the job.
    """
    port_file, pool_port = tmp_path / "port", unused_port("127.0.0.1")
    beam = "apache_beam.runners"
    services = [
        (f"{beam}.portability.local_job_service_main", "--port_file", str(port_file)),
        (f"{beam}.worker.worker_pool_main", "--service_port", str(pool_port)),
    ]
    programs = Path(sys.executable).parent  # the pool starts its workers as `python`
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", *service], env=environment, stderr=subprocess.DEVNULL
        )
        for service in services
    ]
    try:
        while not port_file.exists():
            assert running[0].poll() is None, "the job service did not start"
            time.sleep(0.1)
        yield [
            "--",
            f"--job_endpoint=127.0.0.1:{port_file.read_text().strip()}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{pool_port}",
        ]
    finally:
        for process in running:
            process.terminate()
            process.wait(20)


@pytest.mark.slow
def test_two_workers_and_permuted_rows_make_the_bytes_of_one_worker(
    flags, rows, curated, tmp_path: Path
) -> None:
    shuffled = random.Random(1).sample(rows, len(rows))
    pairs = write_pairs(tmp_path / "input", shuffled)
    status, said = finish(start_command(flags, pairs, tmp_path / "out", workers=2))
    assert status == 0, said
    assert contents(tmp_path / "out") == contents(curated[0])


@pytest.mark.slow
def test_the_portable_path_makes_the_bytes_of_one_worker(
    flags, rows, curated, portable_flags, tmp_path: Path
) -> None:
    shuffled = random.Random(3).sample(rows, len(rows))
    pairs, root = write_pairs(tmp_path / "input", shuffled), tmp_path / "out"
    words = [*flags, "--runner", "PortableRunner"]
    job = start_command(words, pairs, root, 1, portable_flags)
    status, said = finish(job)
    assert status == 0, said
    workers = {state.process for state in ProgressReader(DatasetLayout(str(root))).read()}
    assert workers
    assert job.pid not in workers
    assert contents(root) == contents(curated[0])
