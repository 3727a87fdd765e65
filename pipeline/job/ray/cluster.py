"""A Ray cluster as the runner sees it: its nodes, and where workers find room on them."""

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import ray

from pipeline.dataset.credentials import holds_password
from pipeline.job.dry_run.leaks import secrets_in
from schemas.errors import ConfigError

CLIENT = "ray://"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNeeds:
    """What each worker asks Ray for."""

    cpus: float = 1.0
    memory_bytes: int = 0
    """0 asks for none, and Ray does not count it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster and what Ray has to give on it, in use or not."""

    id: str
    address: str
    cpus: float
    memory_bytes: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The nodes that workers are started on, one entry a worker."""

    without_gpu: tuple[str, ...]
    with_gpu: tuple[str, ...]


def connect(address: str | None) -> None:
    """Connects this process to a cluster, once.

    Args:
        address: HOST:PORT of its head; None takes RAY_ADDRESS, or the cluster of this machine.

    Raises:
        ConfigError: if there is none, or it runs other versions than this process.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS") or "auto"
    if address.startswith(CLIENT):
        raise ConfigError(
            f"--ray-address {address}: workers could not reach a job that is outside of their "
            "cluster. Start it on one of the nodes, or by `ray job submit`, and give HOST:PORT"
        )
    refuse_secrets(sys.argv)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"no Ray cluster at {address} ({first}): start one by `ray start --head`, or name the "
            "head of yours by --ray-address HOST:6379 or RAY_ADDRESS"
        ) from error
    finally:
        with suppress(ValueError):  # not in the main thread: Ray left it alone too
            signal.signal(signal.SIGTERM, handler)


def refuse_secrets(words: Sequence[str]) -> None:
    """Raises `ConfigError` if a command line holds a secret: Ray shows it with the job."""
    found = secrets_in(os.fsencode("\n".join(words)))
    if any(holds_password(word) for word in words):
        found = ["a password", *found]
    if found:
        raise ConfigError(
            f"the command line holds {found[0]}, which Ray would show to all who see the cluster's "
            "jobs: set it in the environment of the nodes instead (a proxy's is "
            "ALIGNGPT_PROXY_CREDENTIALS)"
        )


def driver_address() -> str:
    """Returns the address at which workers find this process."""
    return str(ray.util.get_node_ip_address())


def living_nodes() -> list[Node]:
    """Returns the nodes that are alive, by address."""
    nodes = [
        Node(
            id=found["NodeID"],
            address=found["NodeManagerAddress"],
            cpus=found["Resources"].get("CPU", 0.0),
            memory_bytes=found["Resources"].get("memory", 0.0),
            gpus=found["Resources"].get("GPU", 0.0),
        )
        for found in ray.nodes()
        if found["Alive"]
    ]
    return sorted(nodes, key=lambda node: (node.address, node.id))


def find_places(
    nodes: Sequence[Node], workers: int, gpu_workers: int, needs: WorkerNeeds
) -> Places:
    """Returns where so many workers go, fewer if there is no room; spread over the nodes.

    Workers with a GPU have the first choice; the others go where there is no GPU, and to nodes
    with one only when the rest is full.
    """
    room = {node.id: [node.cpus, node.memory_bytes, node.gpus] for node in nodes}

    def spread(among: Sequence[Node], wanted: int, gpus: int) -> list[str]:
        taken: list[str] = []
        asked = (needs.cpus, needs.memory_bytes, gpus)
        while len(taken) < wanted:
            round_ = [
                node.id
                for node in among
                if all(have >= want for have, want in zip(room[node.id], asked, strict=True))
            ][: wanted - len(taken)]
            if not round_:
                break
            for name in round_:
                room[name] = [have - want for have, want in zip(room[name], asked, strict=True)]
            taken += round_
        return taken

    with_gpu = spread(nodes, gpu_workers, 1)
    plain = spread([node for node in nodes if not node.gpus], workers, 0)
    plain += spread([node for node in nodes if node.gpus], workers - len(plain), 0)
    return Places(without_gpu=tuple(plain), with_gpu=tuple(with_gpu))


def shortage(
    places: Places, workers: int, gpu_workers: int, needs: WorkerNeeds, nodes: int
) -> str | None:
    """Returns a sentence for people if there is room for fewer workers than asked for."""
    asks = f"{needs.cpus:g} CPUs"
    if needs.memory_bytes:
        asks += f" and {needs.memory_bytes / 2**30:.1f} GiB"
    found, wanted = (len(places.without_gpu), len(places.with_gpu)), (workers, gpu_workers)
    kinds = zip(found, wanted, ("workers", "workers with a GPU"), strict=True)
    short = [
        f"{has} {kind} of {asks} ({wants} asked for)" for has, wants, kind in kinds if has < wants
    ]
    if not short:
        return None
    return f"The cluster's {nodes} nodes have room for {' and '.join(short)}: going on with those."
