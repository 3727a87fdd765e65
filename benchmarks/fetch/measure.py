"""Runs a command and measures it: seconds by the clock, memory of all its processes at the peak."""

import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

PAUSE_SECONDS = 0.5
"""Between two looks at the memory: a look holds up a large process for a moment."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a command took."""

    seconds: float
    working_seconds: float
    """In its own count: from the first shard's begin to the last one's end."""
    peak_bytes: int
    """Proportional set size of the whole process tree: what processes share counts once."""
    core_seconds: float
    """Of all its processes."""


def measured(command: list[str], output: Path, cores: Collection[int] | None = None) -> Run:
    """Returns what a command took.

    Args:
        output: folder below which it writes statistics of its shards, as img2dataset does.
        cores: those that it may use; None for all.
    """
    environment = {**environment_of_users(), "NO_ALBUMENTATIONS_UPDATE": "1"}
    with tempfile.TemporaryFile() as log:
        started, spent = time.perf_counter(), children_seconds()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _held_bytes(process.pid))
            try:
                process.wait(PAUSE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            log.seek(0)
            raise SystemExit(f"{command[:4]} failed:\n{log.read().decode()[-3000:]}")
    shards = [json.loads(path.read_text()) for path in output.rglob("*_stats.json")]
    working = max(one["end_time"] for one in shards) - min(one["start_time"] for one in shards)
    return Run(seconds, working, peak, children_seconds() - spent)


def environment_of_users() -> dict[str, str]:
    """Returns this environment, in which Python keeps what it compiles.

    Else each start would compile all libraries anew.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def children_seconds() -> float:
    """Returns what the processes that this one has waited for have taken of all cores."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def _held_bytes(process: int) -> int:
    try:
        parent = psutil.Process(process)
        family = [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return 0
    return sum(_proportional_bytes(one.pid) for one in family)


def _proportional_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0
