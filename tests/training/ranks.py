"""The processes of one training run, started as torchrun would, but warm."""

import os
import sys
from collections.abc import Sequence

from tests.warm_commands import WarmProcess, start_warm
from training.engine.launch import free_port

COMMAND = [sys.executable, "-m", "training.cli"]


def own_environment() -> dict[str, str]:
    """Returns this process's environment without its place among training processes."""
    places = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in places}


def start_ranks(words: Sequence[str], processes: int) -> list[WarmProcess]:
    """Returns the running processes of a command line, each in a process group of its own."""
    assert list(words[: len(COMMAND)]) == COMMAND
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    places |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = []
    for rank in map(str, range(processes)):
        environment = {**own_environment(), **places, "RANK": rank, "LOCAL_RANK": rank}
        ranks.append(start_warm("training.cli", words[len(COMMAND) :], environment))
    return ranks


def run_ranks(words: Sequence[str], processes: int) -> None:
    """Runs a command line in so many processes to their end; fails if one of them does."""
    ranks = start_ranks(words, processes)
    said = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * processes, said
