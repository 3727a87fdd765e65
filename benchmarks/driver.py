"""What a job's driver takes of memory and time at the start of a very large dataset.

    python benchmarks/driver.py --save                     # 1,000, 10,000 and 100,000 shards
    python benchmarks/driver.py --shards 1000 --to-the-end
    python benchmarks/driver.py --requests --save driver_requests

A dataset of one shard is curated for real with a tiny model, and then made as large as asked for:
the files of the other shards are links to its own, under the fingerprints that they would have, and
there are the signs of progress that a job leaves which is killed when it begins to pack, the last
stage. Then the same command goes on. Printed are the seconds from its start to the first worker
(all is listed, and it is known what is done), to the plan of the last stage (every shard went
through the graph and was found to be done), and to the first train shard; with `--to-the-end` also
to the index of the train shards, and to the end with the report. Beside the clock stand the
driver's core seconds and its peak of memory, and the workers' core seconds: on a machine with other
work to do they say more.

`--requests` runs such jobs of two sizes over a store in memory instead, all in one process, and
prints how many calls each shard adds: those of the driver come one after another, the graph's are
divided among workers.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.job_end import tiny_model
from benchmarks.results import Table, add_save_option, show_table
from pipeline.dataset.guard import config_from_json, stored_config
from pipeline.dataset.ownership import read_record
from pipeline.deduplicate.plan import kept_fingerprint, plan_search, survey_shard
from pipeline.level.shard import edges_fingerprint, levels_fingerprint
from schemas.columns import file_metadata, write_table
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint

CORPUS = Path(__file__).parent.parent / "examples" / "corpus"
COMMAND = Path(sys.executable).parent / "aligngpt-curate"
LINKS = 20_000
"""To one file; file systems allow some 65,000."""
LOOK_SECONDS = 0.2


@dataclass
class Moment:
    """What had been used when something was first seen."""

    seconds: float
    driver_cpu: float
    workers_cpu: float
    peak_mb: float


@dataclass
class Watched:
    """A running job, looked at from outside."""

    process: psutil.Process
    started: float = field(default_factory=time.monotonic)
    workers: dict[int, float] = field(default_factory=dict)
    moments: dict[str, Moment] = field(default_factory=dict)
    last: Moment | None = None

    def look(self) -> None:
        """Takes what has been used so far."""
        with suppress(psutil.Error, FileNotFoundError, IndexError):
            for worker in self.process.children(recursive=True):
                times = worker.cpu_times()
                self.workers[worker.pid] = times.user + times.system
            times = self.process.cpu_times()
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            peak = int(status.split("VmHWM:")[1].split()[0]) / 1000
            self.last = Moment(
                time.monotonic() - self.started,
                times.user + times.system,
                sum(self.workers.values()),
                peak,
            )

    def note(self, name: str, has_come: bool) -> None:
        """Remembers when something was first there."""
        if has_come and name not in self.moments and self.last is not None:
            self.moments[name] = self.last


def words(root: Path, pairs: Path, model: str, workers: int) -> list[str]:
    """Returns the command of the job."""
    given = (
        f"--read.image-folder {CORPUS} --read.pairs-per-shard 8 --pack.samples-per-shard 8 "
        f"--levels.num-levels 4 --deduplicate.threshold 0.9999 --fetch.decode-processes 1 "
        f"--fetch.image-size 32 --score.device cpu --score.model {model} --score.batch-size 8 "
        f"--score.threads 1 --score.decode-threads 1 --score.precision fp32 --workers {workers}"
    )
    return ["curate", "--pairs", str(pairs), "--out", str(root), *given.split()]


def write_input(folder: Path) -> Path:
    """Returns the list of the pairs of one shard."""
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[:8]
    pairs = folder / "pairs.tsv"
    lines = [f"{row['file']}\t{row['caption']}\n" for row in rows]
    pairs.write_text("".join(["url\tcaption\n", *lines]))
    return pairs


class Enlarged:
    """A dataset of one shard that is made to be of many."""

    def __init__(self, root: Path, shards: int) -> None:
        self.root, self.shards, self.layout = root, shards, DatasetLayout(str(root))

    def make(self) -> None:
        """Makes all but the last stage of all shards, as if a job had been killed while packing."""
        for path in [*(self.root / "train").iterdir(), *self.root.glob("*.*")]:
            path.unlink()
        self._change_fingerprints()
        for folder in ("pairs", "fetched", "scored", "unique", "levelled", "rejected"):
            for path in sorted((self.root / folder).rglob("00000*")):
                self._link(path, "00000", "{:05d}")
        for path in sorted((self.root / "_run" / "progress").iterdir()):
            if path.name.startswith("pack"):
                path.unlink()
            elif path.name.endswith("-00000.json"):
                self._write_progress(path)
        self._change_marker()
        record = read_record(self.layout)
        assert record is not None
        record.files, record.sizes = {}, {}
        record.begin(tuple(Stage), has_report=True)

    def _change_fingerprints(self) -> None:
        """Gives the results of the first shard the fingerprints that they have among many."""
        config = config_from_json(stored_config(self.layout) or {})
        surveyed = survey_shard(0, self.layout)
        surveys = [replace(surveyed, shard=shard) for shard in range(self.shards)]
        plan = plan_search(surveys, self.layout, config.deduplicate)
        unique = kept_fingerprint(plan.fingerprint, surveyed.fingerprint)
        edges = edges_fingerprint(
            [(shard, unique) for shard in range(self.shards)], config.levels, None
        )
        levels = levels_fingerprint(edges, unique)
        _set_fingerprint(self.layout.unique(0), unique)
        _set_fingerprint(self.layout.levelled(0), levels)
        values = json.loads(Path(self.layout.edges).read_text())
        Path(self.layout.edges).write_text(json.dumps({**values, "fingerprint": edges}))
        assert committed_fingerprint(self.layout.levelled(0)) == levels

    def _change_marker(self) -> None:
        marker = self.root / "_run" / "read.json"
        values = json.loads(marker.read_text())
        values["kept"] *= self.shards
        values["rejected"] *= self.shards
        marker.write_text(json.dumps({**values, "shards": self.shards}))

    def _link(self, path: Path, number: str, pattern: str) -> None:
        """Makes a shard's file that of all shards."""
        source = path
        for shard in range(1, self.shards):
            target = path.with_name(path.name.replace(number, pattern.format(shard), 1))
            if shard % LINKS:
                os.link(source, target)
            else:
                target.write_bytes(path.read_bytes())
                source = target

    def _write_progress(self, path: Path) -> None:
        values = json.loads(path.read_text())
        for shard in range(1, self.shards):
            target = path.with_name(path.name.replace("-00000.", f"-{shard:05d}."))
            target.write_text(json.dumps({**values, "shard": shard}))


def _set_fingerprint(path: str, fingerprint: str) -> None:
    table = pq.read_table(path)
    metadata = {**file_metadata(table.schema), "fingerprint": fingerprint}
    with commit_file(path) as file:
        write_table(table, file, metadata)


def run_job(command: list[str], root: Path, *, to_the_end: bool) -> Watched:
    """Runs a job to its end, or to its first train shard; returns what was seen."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as job:
        seen = Watched(psutil.Process(job.pid))
        signs = moments_of(root, seen)
        while job.poll() is None:
            seen.look()
            for name, has_come in signs.items():
                seen.note(name, has_come())
            if "first train shard" in seen.moments and not to_the_end:
                os.killpg(job.pid, signal.SIGKILL)
                break
            time.sleep(LOOK_SECONDS)
        said = job.communicate()[0]
    if job.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"the job ended with status {job.returncode}:\n{said}")
    seen.note("end", job.returncode == 0)
    return seen


def moments_of(root: Path, seen: Watched) -> dict[str, Callable[[], bool]]:
    """Returns what to look for, in the order in which it comes."""
    progress, train = root / "_run" / "progress", root / "train"
    return {
        "first worker": lambda: bool(seen.workers),
        "plan of packing": (progress / "pack-.plan").exists,
        "first train shard": (train / "000000.parquet").exists,
        "index": (train / "index.json").exists,
    }


def measure(shards: int, folder: Path, options: argparse.Namespace) -> Watched:
    """Returns what a job took that goes on with so many shards."""
    root, pairs = folder / "data", folder / "pairs.tsv"
    if not root.exists():
        make(shards, folder)
    for path in [*(root / "train").glob("*"), *(root / "_run" / "progress").glob("pack-*")]:
        path.unlink()
    command = words(root, pairs, f"local-dir:{folder}/model", options.workers)
    return run_job([str(COMMAND), *command], root, to_the_end=options.to_the_end)


def make(shards: int, folder: Path) -> None:
    """Makes a dataset of so many shards, all done but for the last stage."""
    root, started = folder / "data", time.monotonic()
    command = words(root, write_input(folder), tiny_model(folder), 1)
    subprocess.run([str(COMMAND), *command], check=True, stdout=subprocess.DEVNULL)
    Enlarged(root, shards).make()
    print(f"{shards:,} shards made in {time.monotonic() - started:.0f} s", flush=True)


COUNTED = ("exists", "ls", "info", "find", "cat_file", "cat_ranges", "_open", "put_file", "rm_file")
"""Methods of a store that are one request or more."""


def count_requests(shards: int) -> Counter[tuple[str, str]]:
    """Returns how often a job over so many shards calls its store, by who calls and what."""
    from pipeline import cli

    store, counts = fsspec.filesystem("memory"), Counter[tuple[str, str]]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        make(shards, Path(folder))
        command = words(root, Path(folder) / "pairs.tsv", f"local-dir:{folder}/model", 1)
        store.put(f"{root}/", "/data/", recursive=True)
        command[command.index(str(root))] = "memory://data"
        with counting(type(store), counts):
            status = cli.run(command)
    store.rm("/data", recursive=True)
    if status:
        sys.exit(f"the job ended with status {status}")
    return counts


@contextmanager
def counting(kind: Any, counts: Counter[tuple[str, str]]) -> Iterator[None]:
    """Counts the calls of a kind of store in the block, but not those that it makes itself."""
    within = threading.local()

    def counted(name: str, method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            if getattr(within, "is_called", False):
                return method(*given, **named)
            counts[caller(), name.strip("_")] += 1
            within.is_called = True
            try:
                return method(*given, **named)
            finally:
                within.is_called = False

        return call

    own = {name: getattr(kind, name) for name in (*COUNTED, "rm")}
    for name, method in own.items():
        setattr(kind, name, counted(name, method))
    try:
        yield
    finally:
        for name, method in own.items():
            setattr(kind, name, method)


CALLERS = ("driver, one by one", "driver, 32 at a time", "graph")


def caller() -> str:
    """Returns who calls a store, by the thread: all of a job runs in this process."""
    thread = threading.current_thread()
    if thread is threading.main_thread():
        return CALLERS[0]
    return CALLERS[1] if thread.name.startswith("store") else CALLERS[2]


def requests_of_a_shard() -> Table:
    """Returns how many calls to the store each shard adds, by who makes them.

    Of fewer shards than 64, the report's control reads all.
    """
    small, large = 80, 160
    fewer, more = count_requests(small), count_requests(large)
    rows = []
    for who in CALLERS:
        added = {
            name: (more[who, name] - fewer[who, name]) / (large - small)
            for place, name in sorted(more)
            if place == who
        }
        told = ", ".join(f"{name} {count:.1f}" for name, count in added.items() if count >= 0.05)
        rows.append([who, f"{sum(added.values()):.1f}", told])
    return Table(("whose", "calls for each shard", "of these"), rows)


def main() -> None:
    """Prints a table of what the driver takes, by the number of shards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--to-the-end", action="store_true", help="pack, and write the report")
    parser.add_argument("--folder", help="keep the datasets there, or take those that are there")
    parser.add_argument("--requests", action="store_true", help="count calls to a store")
    add_save_option(parser, "driver")
    options = parser.parse_args()
    if options.requests:
        del sys.argv[1:]  # Beam would take them for its own
        show_table(requests_of_a_shard(), options.save)
        return
    rows = []
    for shards in options.shards:
        with ExitStack() as stack:
            folder = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
            place = Path(folder) / str(shards)
            place.mkdir(parents=True, exist_ok=True)
            seen = measure(shards, place, options)
        for name, moment in seen.moments.items():
            row = [
                f"{shards:,}",
                name,
                f"{moment.seconds:.0f}",
                f"{moment.driver_cpu:.1f}",
                f"{moment.peak_mb:,.0f}",
                f"{moment.workers_cpu:.1f}",
            ]
            rows.append(row)
            print(", ".join(row), flush=True)
    columns = (
        *("shards", "until", "by the clock, s", "driver, core s", "its peak of memory, MB"),
        "all workers, core s",
    )
    show_table(Table(columns, rows), options.save, workers=options.workers)


if __name__ == "__main__":
    main()
