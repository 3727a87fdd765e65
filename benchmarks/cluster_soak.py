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
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import s3fs

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.job_end import tiny_model
from pipeline.dataset.progress import ProgressReader, ShardState
from schemas.shards import DatasetLayout
from schemas.storage import walk_files
from tests.cluster_corpus import BUCKET, dataset_words, made_on_store, put_corpus
from tests.curations import COMMAND, kill
from tests.ray_cluster import RayCluster, has_namespaces
from tests.stores import FaultyStore

NODES, CPUS = 2, 2
LONGEST_PAUSE_SECONDS = 8.0
"""From a job's beginning, or from one event, to the next."""
WEATHER_SECONDS = 10.0
CUT_SECONDS = 30.0
GIVES_UP_SECONDS = 900.0
"""Without any progress, after which the soak fails."""


@dataclass
class Soak:
    """The cluster, the job that is under way, and what has happened so far."""

    cluster: RayCluster
    store: FaultyStore
    words: list[str]
    chance: random.Random
    log: Path
    started: float = field(default_factory=time.monotonic)
    happened: Counter[str] = field(default_factory=Counter)
    nodes: list[int] = field(default_factory=list)
    out: str = ""
    driver: subprocess.Popen[bytes] | None = None
    failures: list[str] = field(default_factory=list)

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

    def states(self) -> list[ShardState]:
        """Returns what is known of the shards, while the store tells; nothing before it can."""
        with suppress(Exception):  # noqa: BLE001 - a store that refuses, by this soak's own doing
            return ProgressReader(DatasetLayout(self.out)).read()
        return []

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

    # What can happen.

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
        assert self.driver is not None
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
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
        if not self.cluster.network.has_namespaces:
            return None
        number = self.chance.choice(self.nodes)
        self.cluster.network.cut(number)
        time.sleep(CUT_SECONDS)
        self.cluster.network.mend(number)
        if self.cluster.processes[number].poll() is not None or not self._is_alive(number):
            self.cluster.kill_node(number)
            self.nodes.remove(number)
            self.nodes.append(self.cluster.add_node(CPUS))
        return f"node {number} was off the network for {CUT_SECONDS:.0f} s"

    def _is_alive(self, number: int) -> bool:
        """Returns whether the head still counts on a node: one that was away for long, it drops."""
        words = [str(Path(sys.executable).parent / "ray"), "list", "nodes"]
        del words
        with suppress(psutil.Error):
            node = psutil.Process(self.cluster.processes[number].pid)
            return any("raylet" in one.name() for one in node.children(recursive=True))
        return False

    def stop_worker_over_drivers(self) -> str | None:
        """Stops a worker, kills its driver, and lets it go on when the next one is at work."""
        workers = self.workers()
        if not workers:
            return None
        victim = self.chance.choice(workers)
        assert self.driver is not None
        with suppress(psutil.NoSuchProcess):
            victim.suspend()
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()
        self.start_driver()
        known = {worker.pid for worker in workers}
        while self.driver.poll() is None and not any(
            worker.pid not in known for worker in self.workers()
        ):
            time.sleep(0.2)
        time.sleep(self.chance.uniform(0, 3))
        with suppress(psutil.NoSuchProcess):
            victim.resume()
        return f"worker {victim.pid} was stopped, and went on beside the next driver's workers"
