"""A Ray cluster that everything happens to: at the end stand the bytes of one machine.

    python benchmarks/cluster_soak.py                      # 20 events: make cluster-soak
    python benchmarks/cluster_soak.py --events 5 --seed 3

A head and two nodes, in network namespaces where this user may make them, curate part of the
demo's pictures; an S3 server of this process is the store. At moments and in an order that the seed
decides, workers, nodes and drivers are killed, the store refuses a third of all requests or answers
each half a second late, a node is off the network for half a minute, and a worker is stopped while
its driver is killed, and let go on when the next driver is at work. A driver that was killed is
started anew; a node that was killed is replaced. Each dataset that is finished is compared with
that of one machine, file by file; then the next one begins, until all events have happened. Ends
with status 1 unless all are the same, nothing is half written, and no job gave up. What happened,
and when, is printed and written to `--log`.

On an idle machine of two cores a dataset takes about a minute when nothing happens to it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import s3fs

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.job_end import tiny_model
from tests.cluster_corpus import BUCKET, made_on_store, put_corpus, words_for
from tests.curations import COMMAND
from tests.ray_cluster import RayCluster, has_namespaces
from tests.stores import FaultyStore

NODES, CPUS = 2, 2
LONGEST_PAUSE_SECONDS = 8.0
"""From a job's beginning, or from one event, to the next."""
WEATHER_SECONDS = 10.0
CUT_SECONDS = 30.0
BACK_SECONDS = 5.0
"""That a node is on the network again: its workers could write now, if they were let."""
DATASET_SECONDS = 1800.0
"""For one dataset, with all that happens to it, after which the soak fails."""


@dataclass
class Soak:
    """The cluster, the job that is under way, and what has happened so far."""

    cluster: RayCluster
    store: FaultyStore
    words: list[str]
    chance: random.Random
    log: Path
    started: float = field(default_factory=time.monotonic)
    nodes: list[int] = field(default_factory=list)
    out: str = ""
    driver: subprocess.Popen[bytes] | None = None

    def say(self, text: str) -> None:
        """Prints a line with the time, and writes it to the log."""
        line = f"{time.monotonic() - self.started:7.1f} s  {text}"
        print(line, flush=True)
        with self.log.open("a") as file:
            file.write(line + "\n")

    def start_driver(self) -> None:
        """Starts a driver on the dataset."""
        on_ray = ["--runner", "ray", "--ray-address", self.cluster.address]
        command = [str(COMMAND), "curate", *self.words, "--out", self.out, *on_ray]
        command += ["--workers", str(NODES * CPUS), "--attempts", "20"]
        with self.log.with_suffix(".drivers").open("ab") as said:
            self.driver = subprocess.Popen(
                command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )

    def end_driver(self) -> None:
        """Kills the driver, if one is at work, with all that it started."""
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()

    def workers(self) -> list[psutil.Process]:
        """Returns the workers on the nodes, by their numbers."""
        found = []
        for process in psutil.process_iter(["pid", "name", "cmdline"]):
            words = " ".join(process.info["cmdline"] or [])
            if words.startswith("ray::BeamWorker") and self._is_ours(process):
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _is_ours(self, process: psutil.Process) -> bool:
        nodes = {self.cluster.processes[number].pid for number in self.nodes}
        with suppress(psutil.Error):
            return any(parent.pid in nodes for parent in process.parents())
        return False

    def kill_worker(self) -> str | None:
        """Kills a worker."""
        workers = self.workers()
        if not workers:
            return None
        victim = self.chance.choice(workers)
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        return f"worker {victim.pid} was killed"

    def kill_node(self) -> str | None:
        """Kills a node, and starts another."""
        number = self.chance.choice(self.nodes)
        self.cluster.kill_node(number)
        self.nodes.remove(number)
        self.nodes.append(self.cluster.add_node(CPUS))
        return f"node {number} was killed, node {self.nodes[-1]} took its place"

    def kill_driver(self) -> str | None:
        """Kills the driver, and starts the next one."""
        self.end_driver()
        self.start_driver()
        return "the driver was killed, and started again"

    def refuse(self) -> str | None:
        """Lets the store refuse requests for a while."""
        before = self.store.refused
        self.store.refused_ratio = 1 / 3
        time.sleep(WEATHER_SECONDS)
        self.store.be_calm()
        return f"the store refused {self.store.refused - before} requests"

    def be_slow(self) -> str | None:
        """Lets the store answer late for a while."""
        self.store.delay_seconds = 0.5
        time.sleep(WEATHER_SECONDS)
        self.store.be_calm()
        return f"the store answered late for {WEATHER_SECONDS:.0f} s"

    def cut_network(self) -> str | None:
        """Takes a node off the network for a while."""
        number = self.chance.choice(self.nodes)
        self.cluster.network.cut(number)
        time.sleep(CUT_SECONDS)
        self.cluster.network.mend(number)
        time.sleep(BACK_SECONDS)
        # The head counts on it no more: it has to come back as a new one.
        self.cluster.kill_node(number)
        self.nodes.remove(number)
        self.nodes.append(self.cluster.add_node(CPUS))
        return (
            f"node {number} was off the network for {CUT_SECONDS:.0f} s and on it again, then "
            f"node {self.nodes[-1]} took its place"
        )

    def stop_worker_over_drivers(self) -> str | None:
        """Stops a worker, kills its driver, and lets it go on when the next one is at work."""
        workers = self.workers()
        if not workers:
            return None
        victim = self.chance.choice(workers)
        with suppress(psutil.NoSuchProcess):
            victim.suspend()
        self.end_driver()
        self.start_driver()
        known = {worker.pid for worker in workers}
        while self._is_under_way() and not any(
            worker.pid not in known for worker in self.workers()
        ):
            time.sleep(0.2)
        time.sleep(self.chance.uniform(0, 3))
        with suppress(psutil.NoSuchProcess):
            victim.resume()
        return f"worker {victim.pid} was stopped, and went on beside the next driver's workers"

    @property
    def events(self) -> list[Callable[[], str | None]]:
        """What can happen; each says what it did, or nothing where there was nobody to do it to."""
        on_any = [
            self.kill_worker,
            self.kill_node,
            self.kill_driver,
            self.refuse,
            self.be_slow,
            self.stop_worker_over_drivers,
        ]
        return [*on_any, *([self.cut_network] if self.cluster.network.has_namespaces else [])]

    def plan(self, count: int) -> list[Callable[[], str | None]]:
        """Returns so many events, each kind as often as the others, in an order of chance."""
        kinds = self.events
        planned = [kinds[number % len(kinds)] for number in range(count)]
        self.chance.shuffle(planned)
        return planned

    def make_dataset(self, number: int, planned: list[Callable[[], str | None]]) -> None:
        """Makes a dataset, and lets happen to it what is planned while it is under way.

        Raises:
            SystemExit: if a job gives up, or does not end.
        """
        self.out = f"s3://{BUCKET}/soak-{number}"
        self.say(f"dataset {number} begins")
        self.start_driver()
        begun = time.monotonic()
        next_at = begun + self.chance.uniform(0, LONGEST_PAUSE_SECONDS)
        while self._is_under_way():
            if planned and time.monotonic() >= next_at:
                told = planned[0]()
                if told is not None:
                    planned.pop(0)
                    self.say(told)
                next_at = time.monotonic() + self.chance.uniform(0, LONGEST_PAUSE_SECONDS)
            if time.monotonic() - begun > DATASET_SECONDS:
                sys.exit(f"dataset {number} is not done after {DATASET_SECONDS:.0f} s")
            time.sleep(0.2)
        self.say(f"dataset {number} is done after {time.monotonic() - begun:.0f} s")

    def _is_under_way(self) -> bool:
        """Returns whether the driver is at work.

        Raises:
            SystemExit: if it gave up.
        """
        assert self.driver is not None
        status = self.driver.poll()
        if status not in (None, 0):
            said = self.log.with_suffix(".drivers").read_text(errors="replace")
            sys.exit(f"the driver ended with status {status}:\n{said[-3000:]}")
        return status is None

    def faults_of(self, number: int, alone: dict[str, str]) -> list[str]:
        """Returns what is not as it should be with a dataset that is done."""
        made = made_on_store(f"soak-{number}")
        names = alone.keys() | made.keys()
        faults = [name for name in sorted(names) if alone.get(name) != made.get(name)]
        faults += [f"half sent: {name}" for name in self.store.half_sent(BUCKET)]
        store = s3fs.S3FileSystem(use_listings_cache=False)
        left = store.find(f"{BUCKET}/soak-{number}/_run/deduplicate")
        return [*faults, *(f"left behind: {name}" for name in left)]


def make_alone(words: list[str]) -> dict[str, str]:
    """Returns the bytes that one machine makes."""
    command = [str(COMMAND), "curate", *words, "--out", f"s3://{BUCKET}/alone"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return made_on_store("alone")


def begin(options: argparse.Namespace, stack: ExitStack) -> Soak:
    """Returns the soak with its cluster and its store, which a stack ends."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    cluster = RayCluster(folder, {}, in_namespaces=has_namespaces())
    stack.callback(cluster.stop)
    store = FaultyStore(cluster.network.head, options.seed)
    stack.callback(store.stop)
    os.environ.update(store.environment)
    cluster.environment.update(store.environment)
    nodes = [cluster.add_node(CPUS) for _ in range(NODES)]
    put_corpus()
    options.log.unlink(missing_ok=True)
    options.log.with_suffix(".drivers").unlink(missing_ok=True)
    words = words_for(tiny_model(folder))
    return Soak(cluster, store, words, random.Random(options.seed), options.log, nodes=nodes)


def main() -> None:
    """Soaks a cluster, and ends with the verdict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("cluster_soak.log"))
    options = parser.parse_args()
    with ExitStack() as stack:
        soak = begin(options, stack)
        networks = (
            "in network namespaces"
            if soak.cluster.network.has_namespaces
            else ("on one network, which is not cut")
        )
        soak.say(f"{NODES} nodes of {CPUS} CPUs {networks}, seed {options.seed}")
        alone = make_alone(soak.words)
        soak.say("one machine has made the dataset")
        planned, number, faults = soak.plan(options.events), 0, []
        stack.callback(soak.end_driver)
        while planned or number == 0:
            number += 1
            soak.make_dataset(number, planned)
            faults += [f"dataset {number}: {fault}" for fault in soak.faults_of(number, alone)]
        soak.say(
            f"events {options.events}, datasets {number}, files of each {len(alone)}: "
            + ("; ".join(faults) or "all are those of one machine, and nothing is half written")
        )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
