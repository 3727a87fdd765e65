"""Two hosts to train on: network namespaces with names of their own, joined by a bridge."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from tests.ray_cluster import Network
from tests.training.ranks import COMMAND, own_environment
from tests.warm_commands import WarmProcess, start_warm
from training.engine.launch import free_port

ROOT = Path(__file__).parents[2]
OWN_FILES = Path("/etc/netns")
"""Where a network namespace has its files of /etc. Source: ip-netns(8)."""
NAMED = 'hostname "$0"; exec "$@"'
"""Gives a process its host's name, as its first word."""


@dataclass
class Hosts:
    """Two hosts, and the port of the first one that the processes meet at."""

    network: Network
    addresses: list[str]
    names: list[str]
    port: int
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start_warm(self, words: list[str], number: int) -> WarmProcess:
        """Returns the running command, the only process of this host, of two in all."""
        places = {"MASTER_ADDR": self.addresses[0], "MASTER_PORT": str(self.port)}
        places |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        environment = {**own_environment(), **places, "RANK": str(number)}
        return start_warm("training.cli", words[len(COMMAND) :], environment, self.names[number])

    def start(self, words: Sequence[str], number: int, log: Path) -> subprocess.Popen[str]:
        """Returns a command that runs on a host; what it says goes to the log."""
        within = ["ip", "netns", "exec", self.names[number], "unshare", "--uts"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*within, "sh", "-c", NAMED, self.names[number], *words],
                env={
                    **own_environment(),
                    "OMP_NUM_THREADS": "1",
                    "DS_ACCELERATOR": "cpu",
                    "PYTHONPATH": str(ROOT),
                },
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def torchrun(self, number: int, processes: int = 1, *more: str) -> list[str]:
        """Returns the words of torchrun for a host, before those of the command's own."""
        words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        words += ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d", "--rdzv-id", "1"]
        words += ["--rdzv-endpoint", f"{self.addresses[0]}:{self.port}"]
        return [*words, "--local-addr", self.addresses[number], *more, "-m", "training.cli"]

    def deepspeed(self, number: int, folder: Path) -> list[str]:
        """Returns the words of DeepSpeed's launcher for a host that no ssh reaches."""
        hostfile = folder / "hosts"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in self.names))
        words = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        words += ["--no_ssh", "--node_rank", str(number), "--master_addr", self.addresses[0]]
        words += ["--master_port", str(self.port), "--no_local_rank"]
        return [*words, "--module", "training.cli"]

    def lose(self, number: int) -> None:
        """Takes a host off the network and kills all that runs there, as a loss of power does."""
        self.network.cut(number + 1)
        self.kill(number)

    def kill(self, number: int) -> None:
        """Kills all processes of a host."""
        pids = ["ip", "netns", "pids", self.names[number]]
        found = subprocess.run(pids, capture_output=True, text=True, check=False)
        for pid in found.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), SIGKILL)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Makes two hosts; at the end, they are removed with all that runs there."""
    network = Network.make(in_namespaces=True)
    hosts = None
    try:
        added = [network.add(number) for number in (1, 2)]
        names = [within[-1] for _, within in added]
        hosts = Hosts(network, [address for address, _ in added], names, free_port())
        # torchrun looks its host's own name up; `ip netns exec` puts these over /etc/hosts.
        known = "".join(f"{address} {within[-1]}\n" for address, within in added)
        for name in names:
            (OWN_FILES / name).mkdir(parents=True)
            (OWN_FILES / name / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        yield hosts
    finally:
        if hosts is not None:
            for name in hosts.names:
                shutil.rmtree(OWN_FILES / name, ignore_errors=True)
            for number in (0, 1):
                hosts.kill(number)
            for process in hosts.started:
                process.wait()
        network.remove(2)
