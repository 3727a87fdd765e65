"""What went wrong in a job, said for people: which stage, which shard, and what to do."""

import errno
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.dataset.progress import ProgressReader, ShardState
from pipeline.job.log import job_log_path
from pipeline.job.watch import Worker
from pipeline.job.worker import worker_log
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path, room_of

REMEDY = "What is committed stays: run the same command again to go on"


class JobFailed(Exception):
    """The job ended before its work was done; the message says where. It can be run again."""


def place_of(state: ShardState) -> str:
    """Returns where a piece of work was."""
    return (
        f"shard {state.shard:05d} in stage {state.stage.value} "
        f"({state.rows_done:,} of {state.total:,} pairs done, process {state.process} "
        f"on {state.host})"
    )


def worker_died(layout: DatasetLayout, lost: Sequence[Worker]) -> JobFailed:
    """Returns the error that says which workers died, how, and over which shards."""
    names = ", ".join(f"process {worker.number}, {worker.ending()}" for worker in lost)
    log = ""
    if is_local(layout.root):
        folder = Path(local_path(layout.run)) / "logs"
        log = f" Its output: {', '.join(str(worker_log(folder, one.number)) for one in lost)}."
    if not any(worker.line.has_joined() for worker in lost):
        return JobFailed(
            f"a worker ended before it began to work ({names}): it ran out of memory, or its "
            f"environment lacks something.{log} {REMEDY}"
        )
    at_work = _at_work(layout, lost)
    numbers = ", ".join(str(state.process) for state in at_work) or ", ".join(
        str(worker.number) for worker in lost
    )
    where = "; ".join(place_of(state) for state in at_work) or "no shard was in its hands"
    endings = ", ".join(sorted({worker.ending() for worker in lost}))
    return JobFailed(
        f"a worker died hard (process {numbers}): {where}. It ended by {endings}: often it ran "
        f"out of memory or was killed.{log} {REMEDY}"
    )


def _at_work(layout: DatasetLayout, workers: Sequence[Worker]) -> list[ShardState]:
    numbers = {worker.number for worker in workers}
    states = ProgressReader(layout).read()
    return [state for state in states if state.state == "running" and state.process in numbers]


def explained(
    error: BaseException, layout: DatasetLayout, started: float, ended: Sequence[Worker] = ()
) -> Exception:
    """Returns an error for people from what the runner raised.

    A worker's error crosses process borders as text; a wrong configuration that only a worker can
    see (a model that is not there) is found in it.

    Args:
        started: when the job began, in Unix seconds.
        ended: workers that ended by no doing of the job and not in order. Where no stage says that
            it failed, the runner's error is only the echo of that.
    """
    text = str(error)
    for kind in (ConfigError, DatasetError, StorageError):
        message = _message_of(kind, error)
        if message is not None:
            return kind(message if kind is not StorageError else f"{message}. {REMEDY}")
    failed = [
        state
        for state in ProgressReader(layout).read()
        if state.state == "failed" and state.time_unix_seconds >= started
    ]
    if not failed and ended:
        return worker_died(layout, ended)
    where = "; ".join(place_of(state) for state in failed) or _running_part(text)
    log = job_log_path(layout)
    details = f" Details: {log}." if log else ""
    return JobFailed(f"{where or 'the job'} failed: {_cause(error)}.{details} {REMEDY}")


def _message_of(kind: type[Exception], error: BaseException) -> str | None:
    """Returns what an error of a kind says, or one of a worker in whose text it stands."""
    text = str(error)
    if isinstance(error, kind):
        return _without_place(text)
    found = re.search(rf"^(?:schemas\.errors\.)?{kind.__name__}: (.*)", text, re.MULTILINE)
    return _without_place(found.group(1)) if found else None


def _cause(error: BaseException) -> str:
    """Returns the error's kind and first line, from a worker's traceback if there is one."""
    text = _without_place(str(error))
    if f"[Errno {errno.ENOSPC}]" in text:
        temporary = Path(tempfile.gettempdir())
        return (
            f"no space left on a device; temporary files lie in {temporary} "
            f"({room_of(temporary)}): make room there, or set TMPDIR to another folder"
        )
    if type(error) is RuntimeError and "Traceback" in text:
        raised = re.findall(r"^\S*(?:Error|Exception|Interrupt|Exit)\b.*", text, re.MULTILINE)
        if raised:
            return str(raised[-1])
    lines = text.strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else repr(error)


def _without_place(text: str) -> str:
    return re.sub(r" \[while running '[^']*'\]", "", text)


def _running_part(text: str) -> str:
    found = re.search(r"\[while running '([^']*)'\]", text)
    return f"stage {found.group(1).split('/')[0].lower()}" if found else ""
