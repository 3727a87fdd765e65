"""Several training processes on this machine, and how they end together."""

import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from schemas.command_line import print_error
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.terminal import Console

T = TypeVar("T")

PR_SET_PDEATHSIG = 1
"""Source: Linux's prctl(2)."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""They ask a run to save and end; Slurm sends the second some time before it preempts."""
STATUS_TERMINATED = 128 + signal.SIGTERM
"""What a process ends with that SIGTERM stopped, whether or not it had something to save: whoever
waits for a model must not go on. As shells write it."""
SIGNS_OF_A_LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "remote process",
    "timed out waiting",
    "gloo/transport",
    "nccl communicator was aborted",
    "failed to recv",
)
"""What gloo, NCCL and torch's store say when a process at the other end is gone."""
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The ports that Linux gives to connections, and to servers that ask for any: first and last."""
FIRST_DYNAMIC_PORT = 49152
"""The same where nothing else is known. Source: RFC 6335, section 6."""
FIRST_PORT = 20000
"""Above those that well-known services take."""
SECONDS_TO_FOLLOW = 600.0
"""Time that the others have to end by themselves when one process failed: the first may be writing
a model. They hear of it (training/engine/watch.py), so that none waits for it in vain."""


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Returns 0 if all processes ended well, else the status of the first that did not.

    SIGTERM is passed on; SIGINT ends all at once. Unlike torchrun's, this status says whether a
    run was stopped by SIGTERM (143) and saved, or failed.

    Args:
        arguments: of `aligngpt-train`, which every process runs.
    """
    command = [sys.executable, "-m", "training.cli", *arguments]
    port = str(free_port())
    cores = str(max(1, len(os.sched_getaffinity(0)) // processes))
    children = []
    for rank in range(processes):
        environment = {
            "OMP_NUM_THREADS": cores,
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        children.append(subprocess.Popen(command, env=environment, preexec_fn=_end_with_parent))
    try:
        with hearing(lambda *_: _send(children, signal.SIGTERM)):
            return _wait(children)
    finally:
        _send(children, signal.SIGKILL)


@contextmanager
def hearing(handler: Callable[..., object]) -> Iterator[Any]:
    """Has a function called when this process is asked to stop, and yields what was before."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield before[signal.SIGTERM]
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _end_with_parent() -> None:
    """Lets the kernel send SIGTERM to this process when the launcher dies: it saves and ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class EarlySigterm:
    """Handles SIGTERM until a run does; so far there is nothing to save.

    A process alone ends at once. One of several would leave the others in a collective, so it
    notes that it was asked, and ends with them in `end_together`.
    """

    def __init__(self) -> None:
        self.was_asked = False

    def __call__(self, *_: object) -> None:
        """Ends this process with 143, or notes that it was asked to end."""
        self.was_asked = True
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            end_before_first_step()


def end_together(handler: object) -> None:
    """Ends all processes with 143 if one was asked to; they must call this together.

    Args:
        handler: of SIGTERM, as `signal.getsignal` gives it; only an `EarlySigterm` was asked.
    """
    import torch
    import torch.distributed as dist

    was_asked = isinstance(handler, EarlySigterm) and handler.was_asked
    device = "cuda" if torch.cuda.is_available() else "cpu"
    votes = torch.tensor(float(was_asked), device=device)
    dist.all_reduce(votes)
    if votes.item() > 0:
        end_before_first_step()


def together(work: Callable[[], T]) -> T:
    """Returns what this process's own work gives; all processes call it together.

    Raises:
        ConfigError, DatasetError, StorageError: in all of them, if in one.
    """
    import torch.distributed as dist

    failure: Exception | None = None
    try:
        result = work()
    except (ConfigError, DatasetError, StorageError) as error:
        failure = error
    failures: list[Exception | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found
    return result


def by_first(find: Callable[[], T]) -> T:
    """Returns what a function gives in the first process; all processes call this together.

    So for what is on disk: another host may remember otherwise for up to a minute what network
    storage held.

    Raises:
        ConfigError, DatasetError, StorageError: in all of them, if it does there.
    """
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome = [find(), None]
        except (ConfigError, DatasetError, StorageError) as error:
            outcome = [None, error]
    dist.broadcast_object_list(outcome, src=0)
    found, failure = outcome
    if failure is not None:
        raise failure
    return cast(T, found)


def end_before_first_step() -> None:
    """Ends this process with 143; the first says what to do."""
    if os.environ.get("RANK", "0") == "0":
        Console(stderr=True).print(
            "stopped by SIGTERM before the first step: run the same command again to begin it"
        )
    sys.exit(STATUS_TERMINATED)


def is_peer_lost(error: Exception) -> bool:
    """Returns whether an error in a collective tells of another process that is gone."""
    words = str(error).lower()
    is_one_of_several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return is_one_of_several and any(sign in words for sign in SIGNS_OF_A_LOST_PEER)


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a port of an address of this machine that nothing listens on.

    It is none of those that the kernel gives to whoever asks for any: one of them could be taken by
    a connection of any program before the processes that are to use it have started.
    """
    for port in random.SystemRandom().sample(range(FIRST_PORT, _first_given_port()), 100):
        with socket.socket() as server, suppress(OSError):
            server.bind((host, port))
            return port
    with socket.socket() as server:
        server.bind((host, 0))
        return int(server.getsockname()[1])


def _first_given_port() -> int:
    """Returns where the ports begin that the kernel gives."""
    try:
        first = int(PORT_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        first = FIRST_DYNAMIC_PORT
    return max(first, FIRST_PORT + 100)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Returns the status of the first process that fails, once the others had time to follow."""
    failed_at = None
    status = 0
    while None in [child.poll() for child in children]:
        time.sleep(0.1)
        ended = [child.returncode for child in children if child.returncode]
        failures = [status for status in ended if status != STATUS_TERMINATED]
        if failures and failed_at is None:
            _say_who_was_killed(children)
            failed_at, status = time.monotonic(), failures[0]
        if failed_at is not None and time.monotonic() - failed_at > SECONDS_TO_FOLLOW:
            break
    status = status or next((child.returncode for child in children if child.returncode), 0)
    return status if status >= 0 else 128 - status


def _say_who_was_killed(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Says which process a signal ended: it could say nothing itself."""
    for rank, child in enumerate(children):
        if child.returncode is not None and child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
            print_error(f"process {rank} of {len(children)} was ended by {name}{hint}")


def _send(children: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
