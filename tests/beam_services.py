"""Beam's services for tests, programs that run while a block does; and curations by them."""

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.dataset.progress import ProgressReader
from schemas.shards import DatasetLayout
from tests.curations import finish, start_command, write_pairs

PATIENCE_SECONDS = 300.0
"""For a program to begin on a busy machine."""


def pool_words(port: int) -> list[str]:
    """Returns the command of a pool that starts a worker of Python for whoever asks."""
    words = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"]
    return [*words, "--service_port", str(port)]


@contextmanager
def running(commands: Sequence[Sequence[str]], is_ready: Callable[[], bool]) -> Iterator[None]:
    """Runs programs while the block does, which begins once they are ready."""
    programs = Path(sys.executable).parent  # a pool starts its workers as `python`
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    services = [
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not is_ready():
            for service, command in zip(services, commands, strict=True):
                assert service.poll() is None, f"{command} did not start"
            assert time.monotonic() < deadline, f"{commands} are not ready"
            time.sleep(0.1)
        yield
    finally:
        for service in services:
            service.terminate()
            service.wait(60)


def listens(port: int) -> bool:
    """Returns whether somebody answers at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def curate_elsewhere(
    flags: list[str], rows: list[tuple[str, str]], beam_flags: list[str], folder: Path, seed: int
) -> Path:
    """Returns the dataset of shuffled rows that workers of a portable runner made, not the job."""
    shuffled = random.Random(seed).sample(rows, len(rows))
    pairs, root = write_pairs(folder / "input", shuffled), folder / "out"
    job = start_command([*flags, "--runner", "PortableRunner"], pairs, root, 1, beam_flags)
    status, said = finish(job)
    assert status == 0, said
    workers = {state.process for state in ProgressReader(DatasetLayout(str(root))).read()}
    assert workers
    assert job.pid not in workers
    return root
