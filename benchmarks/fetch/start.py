"""From the command to the first request, with one worker and with two, as a user runs it."""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.fetch.measure import children_seconds, environment_of_users
from benchmarks.fetch.server import HOSTS

WORKERS = (1, 2)
SHARDS = 4


def start_part(
    serving: Callable[[], AbstractContextManager[tuple[int, Callable[[], float]]]],
    folder: Path,
    images: int,
    rounds: int,
) -> dict[str, Any]:
    """Returns what it takes until the first request, and all of a small job, by workers.

    Args:
        serving: gives the port of a server, and what waits for the moment it was asked first.
    """
    runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in WORKERS}
    for _ in range(rounds):
        for workers, found in runs.items():
            with serving() as (port, first_asked):
                found.append(_run(folder / "start", port, first_asked, images, workers))
    return {
        "images": images,
        "rounds": rounds,
        **{
            f"workers_{workers}": {
                name: statistics.median(one[name] for one in found) for name in found[0]
            }
            for workers, found in runs.items()
        },
    }


def _run(
    root: Path, port: int, first_asked: Callable[[], float], images: int, workers: int
) -> dict[str, float]:
    """Returns what one job took: `fetch` of pairs that were read before."""
    shutil.rmtree(root, ignore_errors=True)
    lines = [f"http://127.9.0.{n % HOSTS}:{port}/{n}.jpg\ta photograph" for n in range(images)]
    pairs = root.with_suffix(".tsv")
    pairs.write_text("\n".join(["url\tcaption", *lines]) + "\n")
    per_shard = f"--read.pairs-per-shard={max(1, images // SHARDS)}"
    _command("read", f"--pairs={pairs}", f"--out={root}", per_shard)
    began, spent = time.time(), children_seconds()
    allowed = ("--fetch.allow-networks=127.0.0.0/8", f"--fetch.allow-ports={port}")
    _command("fetch", f"--out={root}", f"--workers={workers}", *allowed)
    return {
        "first_request_seconds": first_asked() - began,
        "seconds": time.time() - began,
        "core_seconds": children_seconds() - spent,
    }


def _command(*words: str) -> None:
    command = [sys.executable, "-c", "from pipeline.start import main; main()", *words]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment_of_users()
    )
    if run.returncode != 0:
        raise SystemExit(f"{words} failed:\n{run.stderr[-3000:]}")
