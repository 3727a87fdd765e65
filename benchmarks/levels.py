"""Measures how fast levels are cut, beside numpy.argsort of the same scores in the same run.

    python benchmarks/levels.py [--pairs 100000000]

Each of the two runs in a process of its own on one core; its peak memory is the process's. The
hashes are computed from the row in chunks, as the pipeline reads them from its tables in chunks,
so that the memory measured is that of the levels, not of the test data.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray

from scoring.levels import (
    CHUNK_ROWS,
    EdgeSearch,
    count_cells,
    levels_from_edges,
    merge_histograms,
    refine,
)

NUM_LEVELS = 8


def scores(pairs: int) -> NDArray[np.float32]:
    """Returns scores distributed as CLIP's are on web data: mean 0.25, deviation 0.06."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(pairs, dtype=np.float32)
    values *= np.float32(0.06)
    values += np.float32(0.25)
    return values


def hashes(start: int, stop: int) -> NDArray[np.uint64]:
    """Returns the hashes of some rows. Source: Knuth, TAOCP 3, 6.4, Fibonacci hashing."""
    return np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def cut_levels(clip_score: NDArray[np.float32]) -> tuple[NDArray[np.int8], int]:
    """Returns the levels, and the number of passes that the search took."""
    search = EdgeSearch(NUM_LEVELS)
    starts = range(0, len(clip_score), CHUNK_ROWS)
    while not search.is_done:
        search = refine(
            search,
            merge_histograms(
                count_cells(
                    search,
                    clip_score[start : start + CHUNK_ROWS],
                    hashes(start, min(start + CHUNK_ROWS, len(clip_score)))
                    if search.needs_hashes
                    else None,
                )
                for start in starts
            ),
        )
    levels = np.empty(len(clip_score), np.int8)
    for start in starts:
        part = clip_score[start : start + CHUNK_ROWS]
        key_hash = hashes(start, start + len(part))
        levels[start : start + len(part)] = levels_from_edges(part, key_hash, search.edges)
    return levels, search.passes_done


def measure(task: str, pairs: int) -> dict[str, float]:
    """Returns the seconds and the peak gigabytes of one of the two ways."""
    clip_score = scores(pairs)
    started = time.perf_counter()
    if task == "argsort":
        np.argsort(clip_score)
        figures: dict[str, float] = {"seconds": time.perf_counter() - started}
    else:
        levels, passes = cut_levels(clip_score)
        figures = {"seconds": time.perf_counter() - started, "passes": passes}
        counts = np.bincount(levels, minlength=NUM_LEVELS + 1)[1:]
        assert counts.max() - counts.min() <= 1, counts
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return figures


def main() -> None:
    """Runs both ways and prints what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--task", choices=["levels", "argsort"])
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.pairs)))
        return
    one_core = min(os.sched_getaffinity(0))
    found = {}
    for task in ("levels", "argsort"):
        command = [sys.executable, __file__, "--task", task, "--pairs", str(arguments.pairs)]
        output = subprocess.run(
            ["taskset", "-c", str(one_core), *command],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found[task] = json.loads(output)
        print(f"{task:8}", "  ".join(f"{name} {value:.3g}" for name, value in found[task].items()))
    ratio = found["argsort"]["seconds"] / found["levels"]["seconds"]
    print(f"levels of {arguments.pairs:,} pairs: {ratio:.1f} times as fast as argsort")


if __name__ == "__main__":
    main()
