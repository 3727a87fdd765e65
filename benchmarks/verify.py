"""`verify` and `verify --quick` beside plain reading and hashing of the same files.

    python benchmarks/verify.py
    python benchmarks/verify.py --save                     # benchmarks/results/verify.json
    python benchmarks/verify.py --quick                    # does it run at all?
    python benchmarks/verify.py --data DIR                 # a dataset that stands already

The dataset is photographs in a folder of this machine, read, stored and packed without scores. All
three sides read the train shards in rounds, one after the other, so that the files are in memory:
what is measured is the work beside the disk's. Core seconds are of all threads and processes; on a
machine that others use they say more than the clock.
"""

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.fetch.server import photographs
from benchmarks.results import Table, add_save_option, show_table
from pipeline.report import verify

COMMAND = Path(sys.executable).parent / "aligngpt-curate"
DISTINCT = 100
SIZE = (640, 480)
CHUNK_BYTES = 1 << 20


def main() -> None:
    """Prints the rates of the three sides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", help="folder of a finished dataset")
    parser.add_argument("--quick", action="store_true", help="400 samples, one round")
    add_save_option(parser, "verify")
    options = parser.parse_args()
    if options.quick:
        options.samples, options.rounds = 400, 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(options.data or made(Path(folder), options.samples))
        files = sorted((root / "train").glob("*.*"))
        size = sum(path.stat().st_size for path in files)
        sides: dict[str, Callable[[], object]] = {
            "reading and SHA-256": lambda: hash_all(files),
            "verify --quick": lambda: verify.verify_dataset(str(root), is_quick=True),
            "verify, one process": lambda: verify_all(root, in_processes=False),
            "verify, a process for each core": lambda: verify_all(root, in_processes=True),
        }
        rows = measure(sides, size, options.rounds)
    columns = ("", "MB/s by the clock", "MB for a core second", "core seconds, plain hashing = 1")
    megabytes = round(size / 1e6)
    show_table(Table(columns, rows), options.save, megabytes=megabytes, rounds=options.rounds)


def made(folder: Path, samples: int) -> Path:
    """Returns the folder of a dataset of so many photographs, some hundred of them distinct."""
    images = folder / "images"
    images.mkdir()
    pictures = photographs(DISTINCT, SIZE)
    for number in range(samples):
        (images / f"{number:06d}.jpg").write_bytes(pictures[number % DISTINCT])
        (images / f"{number:06d}.txt").write_text(f"photograph number {number}")
    words = ["curate", "--recipe", "llava_instructions", "--pairs", str(images)]
    words += ["--pack.samples-per-shard", str(max(1, samples // 6))]
    subprocess.run([str(COMMAND), *words, "--out", str(folder / "data")], check=True)
    return folder / "data"


def verify_all(root: Path, *, in_processes: bool) -> None:
    """Verifies a dataset as if it were too small, or large enough, for processes."""
    verify.PROCESS_BYTES = 0 if in_processes else sys.maxsize
    verify.verify_dataset(str(root))


def hash_all(files: list[Path]) -> None:
    """Reads and hashes files, one for each core at a time."""

    def hash_one(path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(hash_one, files))


def measure(sides: dict[str, Callable[[], object]], size: int, rounds: int) -> list[list[str]]:
    """Returns for each side its rate by the clock and by the time of all cores."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            began, spent = time.perf_counter(), _core_seconds()
            side()
            taken = time.perf_counter() - began, _core_seconds() - spent
            seconds[name].append(taken)
    plain = statistics.median(core for _, core in next(iter(seconds.values())))
    rows = []
    for name, rounded in seconds.items():
        clock, core = (statistics.median(side) for side in zip(*rounded, strict=True))
        rates = [f"{size / 1e6 / clock:,.0f}", f"{size / 1e6 / core:,.0f}", f"{core / plain:.2f}"]
        rows.append([name, *rates])
    return rows


def _core_seconds() -> float:
    sides = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(spent.ru_utime + spent.ru_stime for spent in sides)


if __name__ == "__main__":
    main()
