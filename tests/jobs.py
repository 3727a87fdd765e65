"""`aligngpt-curate` in processes of their own, which need not load the libraries each.

They are forks of one process that has loaded them, and has no thread yet: a job begins at once
instead of after seconds. All else is as at the command line, and `kill -9` is what it is there.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LOADED = ["pipeline.job.run", "pipeline.fetch.shard", "pipeline.score.shard", "open_clip"]
"""What a job loads sooner or later."""

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__, *LOADED])


def _run(words: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    """Is the command, from the start of its process to its end."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    from pipeline.cli import main

    sys.argv = ["aligngpt-curate", *words]
    main()


class StartedJob:
    """A running `aligngpt-curate`, in a session of its own, asked as one of `subprocess` is."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        descriptor, name = tempfile.mkstemp(prefix="job-")
        os.close(descriptor)
        self._output = Path(name)
        arguments = (list(words), dict(environment), name)
        self._process = _forks.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Returns the exit status; None while it runs."""
        return self._process.exitcode

    @property
    def returncode(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end, at most so many seconds; returns what was said."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, self._output.read_text(errors="replace")
        said = self._output.read_text(errors="replace") if self._output.exists() else ""
        self._output.unlink(missing_ok=True)
        return said, None

    def kill(self) -> None:
        """Ends it and all of its processes at once; it may have ended by itself."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()  # in the moment before it has a group of its own
        self.communicate()
