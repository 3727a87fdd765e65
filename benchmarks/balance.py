"""What workers idle when shards take different times: simulated work over the real runners.

    python benchmarks/balance.py                     # 8 local workers, 200 shards
    python benchmarks/balance.py --runner ray        # 8 workers on a Ray cluster of this machine
    python benchmarks/balance.py --static            # as Beam's own runner divides the work
    python benchmarks/balance.py --save              # benchmarks/results/balance.json
    python benchmarks/balance.py --quick             # does it run at all?

Each shard is a sleep, so that the cores of the machine do not matter. The ideal is the longest of
two: all of the work divided by the workers, and the longest shard. The time counts from the first
shard's beginning to the last one's end, so that starting the workers is left out: a step before has
brought all of them to work. What is over the ideal is told apart: until a worker's first shard
began, between its shards (parts that are handed on), and after its last one, while others still
worked. Beside it stands what is over the ideal if each shard goes to whoever is free first, at no
cost: without knowing beforehand how long a shard takes, nothing does much better.
"""

import argparse
import heapq
import io
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam

sys.path.insert(0, str(Path(__file__).parent.parent))

from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from benchmarks.results import Table, add_save_option, show_table
from pipeline.job.local_workers import LocalRunner
from pipeline.job.log import logging_to_folder
from pipeline.job.ray.options import RayOptions
from pipeline.job.runners import ChosenRunner, choose_runner
from pipeline.job.watched import run_watched
from schemas.shards import DatasetLayout
from schemas.terminal import Console

KINDS: dict[str, Callable[[random.Random, int], list[float]]] = {
    "all alike": lambda chance, count: [1.0] * count,
    "within a factor of three": lambda chance, count: [
        chance.uniform(0.5, 1.5) for _ in range(count)
    ],
    "a slow host in every tenth, four times as long": lambda chance, count: [
        4.0 if number % 10 == 3 else 1.0 for number in range(count)
    ],
    "one huge shard, ten times as long": lambda chance, count: with_huge(chance, count),
}
"""Kinds of work to what each shard takes, an ordinary one 1."""


def with_huge(chance: random.Random, count: int) -> list[float]:
    """Returns what ordinary shards take, and one that is huge, anywhere among them."""
    seconds = [1.0] * count
    seconds[chance.randrange(count)] *= 10
    return seconds


class Sleep(beam.DoFn):
    """Sleeps as long as a shard takes, and notes when."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def process(self, seconds: float) -> list[float]:
        """Notes the beginning and the end of a shard's work, by the machine's clock."""
        begun = time.time()
        time.sleep(seconds)
        name = f"{os.getpid()}-{begun:.6f}.json"
        Path(self._folder, name).write_text(json.dumps([begun, time.time()]))
        return [seconds]


def wait_for_all(number: int, folder: str, workers: int) -> int:
    """Returns a number once as many workers as there are have come to work."""
    Path(folder, f"come-{os.getpid()}").touch()
    while len(list(Path(folder).glob("come-*"))) < workers:
        time.sleep(0.05)
    return number


@dataclass(frozen=True, slots=True)
class Spent:
    """How long the work took, and for how long workers had none, added up over them."""

    seconds: float
    before: float
    """Until its first shard began."""
    between: float
    after: float
    """From its last shard's end to that of all."""


def spent_in(spans: Mapping[str, Sequence[tuple[float, float]]]) -> Spent:
    """Returns what all took.

    Args:
        spans: worker to when each of its shards began and ended.
    """
    begin = min(one[0] for own in spans.values() for one in own)
    end = max(one[1] for own in spans.values() for one in own)
    firsts = [min(one[0] for one in own) for own in spans.values()]
    lasts = [max(one[1] for one in own) for own in spans.values()]
    at_work = sum(one[1] - one[0] for own in spans.values() for one in own)
    return Spent(
        seconds=end - begin,
        before=sum(first - begin for first in firsts),
        between=sum(lasts) - sum(firsts) - at_work,
        after=sum(end - last for last in lasts),
    )


def in_turn(seconds: Sequence[float], workers: int) -> float:
    """Returns how long shards take if each goes, in their order, to whoever is free first."""
    free = [0.0] * workers
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def run(chosen: ChosenRunner, seconds: Sequence[float], workers: int) -> Spent:
    """Returns how long the work on all shards took."""
    with tempfile.TemporaryDirectory() as folder:
        layout = DatasetLayout(f"{folder}/data")
        Path(layout.run).mkdir(parents=True)
        pipeline = beam.Pipeline(runner=chosen.runner, options=chosen.options)
        come = (
            pipeline
            | "Workers" >> beam.Create(range(workers))
            | "SpreadWorkers" >> beam.Reshuffle()
            | "Come" >> beam.Map(wait_for_all, folder, workers)
            | "All" >> beam.combiners.Count.Globally()
        )
        _ = (
            pipeline
            | "Shards" >> beam.Create(list(seconds))
            | "Spread" >> beam.Reshuffle()
            | "After" >> beam.Map(lambda one, all_: one, beam.pvalue.AsSingleton(come))
            | "SpreadAgain" >> beam.Reshuffle()
            | "Work" >> beam.ParDo(Sleep(folder))
        )
        with logging_to_folder(layout):
            run_watched(pipeline, layout, (), chosen.watch, Console(file=io.StringIO()))
        spans: dict[str, list[tuple[float, float]]] = {}
        for path in Path(folder).glob("*.json"):
            begun, ended = json.loads(path.read_text())
            spans.setdefault(path.name.split("-")[0], []).append((begun, ended))
    assert sum(map(len, spans.values())) == len(seconds)
    return spent_in(spans)


def chosen_runner(options: argparse.Namespace, folder: str) -> ChosenRunner:
    """Returns a new runner, as the command line names it."""
    if options.runner == "local":
        layout = DatasetLayout(f"{folder}/data")
        chosen = choose_runner("local", options.workers, (), layout)
        if options.static:
            assert isinstance(chosen.runner, LocalRunner)
            chosen.runner.__class__ = FnApiRunner
        return chosen
    from pipeline.job.ray.cluster import WorkerNeeds, connect
    from pipeline.job.ray.runner import RayRunner

    connect(options.address)
    chosen = choose_runner("ray", 1, (), DatasetLayout(f"{folder}/data"), RayOptions())
    runner = RayRunner(options.workers, None, WorkerNeeds(cpus=1), chosen.watch, print)
    return ChosenRunner(
        name="ray", runner=runner, options=chosen.options, workers=0, watch=chosen.watch
    )


def start_ray(options: argparse.Namespace, stack: ExitStack) -> None:
    """Starts a cluster of one node that claims a core for each worker, and ends it with a stack."""
    from tests.ray_cluster import RayCluster

    cluster = RayCluster(Path(stack.enter_context(tempfile.TemporaryDirectory())), {}, cpus=0)
    stack.callback(cluster.stop)
    cluster.add_node(options.workers)
    options.address = cluster.address


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runner", choices=["local", "ray"], default="local")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of an ordinary shard")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--static", action="store_true", help="local: divided beforehand")
    parser.add_argument("--quick", action="store_true", help="few short shards, two workers")
    add_save_option(parser, "balance")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.shards, options.rounds, options.seconds = 2, 12, 1, 0.05
    return options


def measured(options: argparse.Namespace, kind: str) -> list[str]:
    """Returns the row of a kind of work: the medians of the rounds."""
    over, blind = [], []
    for round_ in range(options.rounds):
        parts = KINDS[kind](random.Random(round_), options.shards)
        seconds = [options.seconds * part for part in parts]
        ideal = max(sum(seconds) / options.workers, max(seconds))
        with tempfile.TemporaryDirectory() as folder:
            took = run(chosen_runner(options, folder), seconds, options.workers)
        blind.append(in_turn(seconds, options.workers) / ideal - 1)
        all_of_it = ideal * options.workers
        idle = [part / all_of_it for part in (took.before, took.between, took.after)]
        over.append((took.seconds / ideal - 1, *idle))
    whole, *idle = (statistics.median(part) for part in zip(*over, strict=True))
    cells = [f"{statistics.median(blind):+.1%}", f"{whole:+.1%}", *(f"{one:.1%}" for one in idle)]
    return [kind, *cells]


def main() -> None:
    """Prints how far over the ideal each kind of work took."""
    options = parse_options()
    logging.disable(logging.WARNING)
    rows = []
    with ExitStack() as stack:
        if options.runner == "ray":
            start_ray(options, stack)
        for kind in options.kinds:
            rows.append(measured(options, kind))
            print(", ".join(rows[-1]), flush=True)
    columns = (
        *("over the ideal", "in turn, at no cost", "as divided"),
        *("of that: before the first shard", "between shards", "after the last"),
    )
    show_table(
        Table(columns, rows),
        options.save,
        runner=options.runner,
        divided="beforehand, as Beam does" if options.static else "from the queue",
        workers=options.workers,
        shards=options.shards,
        seconds_of_a_shard=options.seconds,
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
