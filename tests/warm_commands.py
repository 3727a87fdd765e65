"""Commands in processes of their own, forked from one that has their libraries loaded already.

Torch, Beam and what they bring take a command several seconds of a core to import, and the tests
start dozens: to kill them, to let them end by themselves, two at once. A forked one is as real,
with a process group, an environment and an output of its own; only the start of Python is left out.
What is forked has imported and done nothing else, and has no threads but one of Arrow's allocator,
which knows of forks. The workers of a curation are forked likewise (`tests/warm_workers.py`).

    test  -- words, environment, two pipes -->  this module as a program, with all imported
      ^                                           |- fork -> keeper -- fork -> the command
      |------- process, then exit status ------------------------|
"""

import atexit
import ctypes
import functools
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.warm_workers import fork_workers

PRELOADED = {
    "pipeline.cli": ("pipeline.job.run", "pipeline.deduplicate.transform", "scoring.clip.scorer"),
    "training.cli": ("training.train", "deepspeed"),
}
"""Modules with the `main` of a command, and what such a command imports as it begins to work."""

ENDINGS = {signal.SIGINT, signal.SIGTERM}
"""Signals that wait until a command begins: what Python does at a fork must not be interrupted."""

CLONE_NEWNET, CLONE_NEWUTS = 0x40000000, 0x04000000
"""Source: Linux's sched.h."""
SECONDS_TO_START = 300.0
"""To import everything on a machine with much else to do."""


class WarmProcess:
    """A command under way, with what `subprocess.Popen` has of it; its output is one text."""

    def __init__(self, pid: int, output: IO[bytes], status: IO[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._output, self._status = output, status

    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while the command runs."""
        if self.returncode is None and _has_news(self._status, 0):
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Returns what the command said, standard error with it, once it has ended."""
        seconds = timeout or float("inf")
        give_up_at, said = time.monotonic() + seconds, b""
        while not self._output.closed:
            self._wait_for(self._output, give_up_at)
            if more := os.read(self._output.fileno(), 1 << 16):
                said += more
            else:
                self._output.close()
        if self.poll() is None:
            self._wait_for(self._status, give_up_at)
            self.poll()
        return said.decode(), None

    def _wait_for(self, file: IO[bytes], give_up_at: float) -> None:
        left = give_up_at - time.monotonic()
        if not _has_news(file, None if left == float("inf") else max(left, 0)):
            raise subprocess.TimeoutExpired(f"process {self.pid}", left)


def _has_news(file: IO[bytes], seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def start_warm(
    module: str,
    words: Sequence[str],
    environment: Mapping[str, str],
    host: str = "",
    workers: int = 0,
) -> WarmProcess:
    """Returns the running `main` of a module with these words, in a process group of its own.

    Args:
        host: network namespace that it runs in, also its host's name.
        workers: how many of the worker processes that a curation starts are forked.
    """
    output, said = os.pipe()
    status, told = os.pipe()
    request: dict[str, Any] = {
        "words": list(words),
        "environment": dict(environment),
        "folder": str(Path.cwd()),
    }
    request |= {"host": host, "workers": workers}
    socket.send_fds(_warm_process(module), [json.dumps(request).encode()], [said, told])
    os.close(said)
    os.close(told)
    news = os.fdopen(status, "rb", buffering=0)
    return WarmProcess(int(news.readline()), os.fdopen(output, "rb", buffering=0), news)


@functools.cache
def _warm_process(module: str) -> socket.socket:
    """Returns the line to a process that has imported a command; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm_commands", module, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    theirs.close()
    ours.settimeout(SECONDS_TO_START)
    assert json.loads(ours.recv(10_000)) == {"threads": [], "of": module}
    atexit.register(_end, process, ours)
    return ours


def _end(process: subprocess.Popen[bytes], line: socket.socket) -> None:
    line.close()
    process.wait()


def serve(module: str, line: socket.socket) -> Any:
    """Imports a command and forks at each request; returns what the new process is to run.

    In the process that is forked it never returns: that ends with the line.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    # Libraries warn while they are imported.
    logging.basicConfig(handlers=[logging.NullHandler()])
    command = importlib.import_module(module)
    for name in PRELOADED[module]:
        importlib.import_module(name)
    line.send(json.dumps({"threads": threads(), "of": module}).encode())
    gc.freeze()  # what nobody looks through is not copied
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no keeper is waited for
    while True:
        request, pipes, *_ = socket.recv_fds(line, 1 << 20, 2)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            line.close()
            asked = json.loads(request)
            workers = asked.pop("workers")
            _keep(*pipes, **asked)
            main = fork_workers(workers) or command.main
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
            return main
        for pipe in pipes:
            os.close(pipe)


def threads() -> list[str]:
    """Returns the names of this process's threads but for the first, and for the allocator's."""
    tasks = Path("/proc/self/task").iterdir()
    names = [(task / "comm").read_text().strip() for task in tasks if task.name != str(os.getpid())]
    return [name for name in names if name != "jemalloc_bg_thd"]


def _keep(
    said: int, told: int, words: list[str], environment: dict[str, str], folder: str, host: str
) -> None:
    """Forks the command, in whose process it returns; waits for its end and tells the status."""
    if (pid := os.fork()) != 0:
        os.close(said)
        os.write(told, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    os.close(told)
    if host:
        _enter(host)
    os.setsid()
    for standard in (1, 2):
        os.dup2(said, standard)
    os.close(said)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = words


def _enter(host: str) -> None:
    """Puts this process into a network namespace and gives it a host name of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{host}").open() as place:
        if libc.setns(place.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), f"{host} cannot be entered")
    socket.sethostname(host)


if __name__ == "__main__":
    main = serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
    main()
