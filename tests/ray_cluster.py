"""A Ray cluster for tests: a head, and nodes with addresses of their own.

Each node stands in a network namespace where this user may make one, so that it is reached over a
network that can be cut; otherwise the nodes are processes on several loopback addresses.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.web_server import unused_port

ROOT = Path(__file__).parent.parent
RAY = Path(sys.executable).parent / "ray"
MEMORY_BYTES = 80_000_000
"""Of each node's object store, the least that Ray takes; our workers put nothing there."""


STARTS = 5
"""Of a node, before its not joining is the test's fault."""


def has_namespaces() -> bool:
    """Returns whether this user may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"aligngpt-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


@dataclass
class Network:
    """Addresses of the cluster: one for this process and the head, one for each node."""

    prefix: str
    has_namespaces: bool
    name: str = field(default_factory=lambda: f"ag{os.getpid()}")

    @classmethod
    def make(cls, *, in_namespaces: bool) -> "Network":
        """Returns a network of its own, a bridge if it has namespaces."""
        if not in_namespaces:
            return cls("127.0.1", False)
        network = cls(f"10.{77 + os.getpid() % 100}.0", True)
        _ip(f"link add {network.name} type bridge")
        _ip(f"addr add {network.head}/24 dev {network.name}")
        _ip(f"link set {network.name} up")
        return network

    @property
    def head(self) -> str:
        """The address of this process and of the head."""
        return f"{self.prefix}.1"

    def add(self, number: int) -> tuple[str, list[str]]:
        """Returns the address of a new node, and the words that a command in it begins with."""
        address = f"{self.prefix}.{number + 1}"
        if not self.has_namespaces:
            return address, []
        space, outer, inner = f"{self.name}n{number}", f"{self.name}o{number}", "eth0"
        _ip(f"netns add {space}")
        _ip(f"link add {outer} type veth peer name {inner} netns {space}")
        _ip(f"link set {outer} master {self.name} up")
        _ip(f"-n {space} addr add {address}/24 dev {inner}")
        _ip(f"-n {space} link set {inner} up")
        _ip(f"-n {space} link set lo up")
        return address, ["ip", "netns", "exec", space]

    def cut(self, number: int) -> None:
        """Takes a node off the network."""
        _ip(f"link set {self.name}o{number} down")

    def mend(self, number: int) -> None:
        """Puts a node on the network again."""
        _ip(f"link set {self.name}o{number} up")

    def remove(self, nodes: int) -> None:
        """Removes what was made of it.

        A connection of a node that was cut can hold its namespace for minutes after its last
        process, so that the link to it is removed by itself.
        """
        if self.has_namespaces:
            for number in range(1, nodes + 1):
                for made in (
                    f"netns delete {self.name}n{number}",
                    f"link delete {self.name}o{number}",
                ):
                    with suppress(subprocess.CalledProcessError):
                        _ip(made)
            _ip(f"link delete {self.name}")


def _kill_session(leader: int) -> None:
    """Kills what a process has left that led a session."""
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                process.kill()


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


class RayCluster:
    """A cluster whose nodes can be added and killed."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        cpus: int = 0,
        in_namespaces: bool = False,
    ) -> None:
        self.network = Network.make(in_namespaces=in_namespaces)
        self._folder, self._port = folder, unused_port("127.0.0.1")
        self.environment = {
            **os.environ,
            **environment,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # By default Ray lets all else on the machine go first.
            "RAY_worker_niceness": "0",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        # Sockets have short names, so the folder of a test is too deep for them.
        self._session = Path(f"/tmp/aligngpt-ray-{os.getpid()}-{self._port}")
        head = ["--head", f"--port={self._port}", f"--num-cpus={cpus}", "--include-dashboard=false"]
        head += [f"--temp-dir={self._session}", f"--ray-client-server-port={unused_port('')}"]
        self._start([], self.network.head, head)

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return f"{self.network.head}:{self._port}"

    def add_node(self, cpus: int, *more: str) -> int:
        """Starts a node; returns its number, 1 for the first."""
        number = len(self.processes)
        address, within = self.network.add(number)
        words = [f"--address={self.address}", f"--num-cpus={cpus}", *more]
        self._start(within, address, words)
        return number

    def _start(self, within: Sequence[str], address: str, words: Sequence[str]) -> None:
        """Starts Ray's processes, and returns once they have joined: two at once can clash.

        Ray itself gives up after 30 s, which a busy machine can take.
        """
        log = self._folder / f"node-{len(self.processes)}.log"
        command = [*within, str(RAY), "start", "--block", "--disable-usage-stats", *words]
        command += [f"--node-ip-address={address}", f"--object-store-memory={MEMORY_BYTES}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += ["--dashboard-agent-listen-port=0"]
        for _ in range(STARTS):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,
                )
            while b"--block" not in log.read_bytes() and process.poll() is None:
                time.sleep(0.1)
            if process.poll() is None:
                self.processes.append(process)
                return
            _kill_session(process.pid)
        raise AssertionError(log.read_text())

    def kill_node(self, number: int) -> None:
        """Kills all processes of a node at once."""
        process = self.processes[number]
        with suppress(psutil.NoSuchProcess):
            node = psutil.Process(process.pid)
            for one in [node, *node.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()

    def logs(self) -> list[Path]:
        """Returns the logs of all nodes and workers, whose machine is this one."""
        return [path for path in self._session.glob("session_2*/logs/**/*") if path.is_file()]

    def stop(self) -> None:
        """Ends the cluster, and removes what it left."""
        for number in reversed(range(len(self.processes))):
            self.kill_node(number)
        self.network.remove(len(self.processes) - 1)
        shutil.rmtree(self._session, ignore_errors=True)
