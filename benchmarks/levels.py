"""Measures how fast levels are cut, beside numpy.argsort of the same scores in the same run.

    python benchmarks/levels.py --repeat 3
    python benchmarks/levels.py --repeat 3 --save    # and writes benchmarks/results/levels.json
    python benchmarks/levels.py --quick              # two million pairs

Each of the two runs in a process of its own on one core; its peak memory is the process's. The
hashes are computed from the row when they are asked for, which is for pairs at an edge alone, so
that what is measured is the levels, not the test data.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from scoring.levels.edges import (
    EdgeSearch,
    count_cells,
    levels_from_edges,
    refine,
)

NUM_LEVELS = 8
TASKS = ("levels", "argsort")


def scores(pairs: int) -> NDArray[np.float32]:
    """Returns scores distributed as CLIP's are on web data: mean 0.25, deviation 0.06."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(pairs, dtype=np.float32)
    values *= np.float32(0.06)
    values += np.float32(0.25)
    return values


class RowHashes:
    """Hashes of the keys that are made when asked for, as the pipeline reads them from its keys."""

    def __getitem__(self, rows: NDArray[np.intp], /) -> NDArray[np.uint64]:
        """Returns the hashes. Source: Knuth, TAOCP 3, 6.4, Fibonacci hashing."""
        return rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def cut_levels(clip_score: NDArray[np.float32]) -> tuple[NDArray[np.int8], int]:
    """Returns the levels, and the number of passes that the search took."""
    search = EdgeSearch(NUM_LEVELS)
    while not search.is_done:
        search = refine(search, count_cells(search, clip_score, RowHashes()))
    return levels_from_edges(clip_score, RowHashes(), search.edges), search.passes_done


def measure(task: str, pairs: int) -> dict[str, float]:
    """Returns the seconds and the peak gigabytes of one of the two ways."""
    clip_score = scores(pairs)
    started, started_cpu = time.perf_counter(), time.process_time()
    if task == "argsort":
        np.argsort(clip_score)
        figures: dict[str, float] = {}
    else:
        levels, passes = cut_levels(clip_score)
        figures = {"passes": passes}
    figures["seconds"] = time.perf_counter() - started
    figures["processor_seconds"] = time.process_time() - started_cpu
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if task == "levels":
        counts = np.bincount(levels, minlength=NUM_LEVELS + 1)[1:]
        assert counts.max() - counts.min() <= 1, counts
    return figures


def main() -> None:
    """Runs both ways and prints what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--quick", action="store_true", help="two million pairs")
    parser.add_argument("--repeat", type=int, default=1, help="runs, of which the median counts")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    add_save_option(parser, "levels")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.pairs)))
        return
    if arguments.quick:
        arguments.pairs = 2_000_000
    runs = [measured(arguments.pairs) for _ in range(arguments.repeat)]
    rows = [[str(number), *row_of(run)] for number, run in enumerate(runs, 1)]
    middle = {
        task: {
            name: statistics.median(run[task][name] for run in runs) for name in runs[0]["argsort"]
        }
        for task in TASKS
    }
    rows.append(["median", *row_of(middle)])
    columns = (
        *("run", "levels: wall, processor", "argsort: wall, processor"),
        *("times as fast, by both", "peak, levels", "peak, argsort"),
    )
    show_table(Table(columns, rows), arguments.save, pairs=arguments.pairs, levels=NUM_LEVELS)


def measured(pairs: int) -> dict[str, dict[str, float]]:
    """Returns what both ways took, each on one core in a process of its own."""
    one_core = min(os.sched_getaffinity(0))
    found = {}
    for task in TASKS:
        command = [sys.executable, __file__, "--task", task, "--pairs", str(pairs)]
        output = subprocess.run(
            ["taskset", "-c", str(one_core), *command], check=True, capture_output=True, text=True
        ).stdout
        found[task] = json.loads(output)
        figures = (f"{name} {value:.3g}" for name, value in found[task].items())
        print(f"{task:8}", "  ".join(figures), flush=True)
    return found


def row_of(run: dict[str, dict[str, float]]) -> list[str]:
    """Returns what both ways took, and how many times as fast the levels are."""
    levels, argsort = run["levels"], run["argsort"]
    times = [argsort[name] / levels[name] for name in ("seconds", "processor_seconds")]
    return [
        *(f"{one['seconds']:.2f} s, {one['processor_seconds']:.2f} s" for one in (levels, argsort)),
        f"{times[0]:.1f}, {times[1]:.1f}",
        *(f"{one['peak_gb']:.2f} GB" for one in (levels, argsort)),
    ]


if __name__ == "__main__":
    main()
