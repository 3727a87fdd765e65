"""Measures fetching and scoring in one go, stores what was found and makes the docs' tables of it.

    python benchmarks/everything.py                   # measures
    python benchmarks/everything.py --only web cpu    # measures these, and stores them again
    python benchmarks/everything.py --quick           # does every benchmark and experiment run?

The figures are stored in `benchmarks/results/`, from which the tables of the docs are made. A run
on a machine that is busy with other things says so: the load is stored beside the figures.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent

MEASURED = {
    "cpu": ("benchmarks/fetch/run.py", "--part", "cpu", "--images", "6000", "--rounds", "1"),
    "latency": ("benchmarks/fetch/run.py", "--part", "latency"),
    "start": ("benchmarks/fetch/run.py", "--part", "start"),
    "mixed": ("benchmarks/fetch/run.py", "--part", "mixed"),
    "web": ("benchmarks/fetch/run.py", "--part", "web", "--images", "50000"),
    "score": ("benchmarks/score.py", "--pairs", "128"),
    "score_feed": ("benchmarks/score_feed.py",),
    "score_memory": ("benchmarks/score_memory.py", "--images", "64", "--rounds", "1"),
}
"""Scripts that store their figures, by the name of the part, at sizes that take minutes in all."""


def main() -> None:
    """Runs all of it; ends with the first script that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="run everything, measure nothing")
    parser.add_argument(
        "--only", nargs="+", choices=MEASURED, default=MEASURED, help="parts to measure"
    )
    options = parser.parse_args()
    began = time.monotonic()
    if options.quick:
        for script in scripts():
            run([script, "--quick"], began)
        return
    for part in options.only:
        run([*MEASURED[part], "--save"], began)
    run(["benchmarks/tables.py", "--write"], began)


def scripts() -> list[str]:
    """Returns the benchmarks and experiments that can be run alone."""
    found = [
        path
        for folder in ("benchmarks", "experiments")
        for pattern in ("*.py", "*/run.py")
        for path in (ROOT / folder).glob(pattern)
    ]
    return sorted(
        str(path.relative_to(ROOT))
        for path in found
        if path != Path(__file__).resolve() and "--quick" in path.read_text("utf-8")
    )


def run(command: list[str], began: float) -> None:
    """Runs a script of this repository, and says when it began."""
    print(f"== {' '.join(command)} ({time.monotonic() - began:.0f} s)", flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"{command[0]} failed")


if __name__ == "__main__":
    main()
