"""One input and one configuration make one dataset, on any runner and with any parallelism."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beam_services import curate_elsewhere, pool_words, running
from tests.curations import contents, finish, start_command, write_pairs
from tests.web_server import unused_port


@pytest.fixture
def portable_flags(tmp_path: Path) -> Iterator[list[str]]:
    """Returns Beam's flags for a job service and a pool of workers, both of this machine.

    It is what a worker of Flink or Dataflow sees: graph, functions and data come over the network
    from a service that shares no process with the job.
    """
    port_file, pool_port = tmp_path / "port", unused_port("127.0.0.1")
    service = "apache_beam.runners.portability.local_job_service_main"
    job_service = [sys.executable, "-m", service, "--port_file", str(port_file)]
    with running([job_service, pool_words(pool_port)], port_file.exists):
        yield [
            "--",
            f"--job_endpoint=127.0.0.1:{port_file.read_text().strip()}",
            "--environment_type=EXTERNAL",
            f"--environment_config=127.0.0.1:{pool_port}",
        ]


@pytest.mark.slow
def test_two_workers_and_permuted_rows_make_the_bytes_of_one_worker(
    flags, rows, curated, tmp_path: Path
) -> None:
    shuffled = random.Random(1).sample(rows, len(rows))
    pairs = write_pairs(tmp_path / "input", shuffled)
    job = start_command(flags, pairs, tmp_path / "out", workers=2, is_warm=False)
    status, said = finish(job)
    assert status == 0, said
    assert contents(tmp_path / "out") == contents(curated[0])


@pytest.mark.slow
def test_the_portable_path_makes_the_bytes_of_one_worker(
    flags, rows, curated, portable_flags, tmp_path: Path
) -> None:
    root = curate_elsewhere(flags, rows, portable_flags, tmp_path, seed=3)
    assert contents(root) == contents(curated[0])
