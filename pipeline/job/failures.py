"""What went wrong in a job, said for people: which stage, which shard, and what to do."""

import errno
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.dataset.progress import ProgressReader, ShardState, WorkError
from pipeline.job.log import job_log
from pipeline.job.watch import Worker
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path, room_of

FOR_PEOPLE = {kind.__name__: kind for kind in (ConfigError, DatasetError, StorageError)}
"""Name to class of the errors whose message is all that a person needs."""

RUNNING = " [while running '"
"""What Beam adds to an error: the step that it was raised in."""

REMEDY = "What is committed stays: run the same command again to go on"


class JobFailed(Exception):
    """The job ended before its work was done; the message says where. It can be run again."""


class WorkersLost(JobFailed):
    """Workers ended before their work was done, for no fault that the job can be blamed for."""

    def __init__(
        self, message: str, at_work: Sequence[ShardState] = (), *, machines_lost: bool = False
    ) -> None:
        super().__init__(message, at_work)
        self.at_work, self.machines_lost = tuple(at_work), machines_lost
        """What was in their hands, and whether whole machines went with them."""

    def __str__(self) -> str:
        return str(self.args[0])


def place_of(state: ShardState) -> str:
    """Returns where a piece of work was."""
    return (
        f"shard {state.shard:05d} in stage {state.stage.value} "
        f"({state.rows_done:,} of {state.total:,} pairs done, process {state.process} "
        f"on {state.host})"
    )


def worker_died(layout: DatasetLayout, lost: Sequence[Worker]) -> Exception:
    """Returns the error that says which workers died, how, and over which shards.

    Why a worker would not begin goes before all else.
    """
    refusal = next((found for one in lost if (found := one.refusal())), None)
    if refusal is not None:
        return refusal
    names = ", ".join(f"{_name_of(worker)}, {worker.ending()}" for worker in lost)
    log = ""
    if is_local(layout.root):
        folder = Path(local_path(layout.run)) / "logs"
        log = f" Its output: {', '.join(dict.fromkeys(one.output(folder) for one in lost))}."
    if not any(worker.line.has_joined() for worker in lost):
        return WorkersLost(
            f"a worker ended before it began to work ({names}): it ran out of memory, or its "
            f"environment lacks something.{log} {REMEDY}"
        )
    at_work = _at_work(layout, lost)
    processes = dict.fromkeys(state.process for state in at_work)  # one may hold several shards
    numbers = ", ".join(map(str, processes or [worker.number for worker in lost]))
    where = "; ".join(place_of(state) for state in at_work) or "no shard was in its hands"
    endings = ", ".join(sorted({worker.ending() for worker in lost}))
    return WorkersLost(
        f"a worker died hard (process {numbers}): {where}. It ended by {endings}: often it ran "
        f"out of memory or was killed.{log} {REMEDY}",
        at_work,
        machines_lost=any(worker.lost_its_machine() for worker in lost),
    )


def _name_of(worker: Worker) -> str:
    on = f" on {worker.host}" if worker.host else ""
    return f"process {worker.number}{on}"


def _at_work(layout: DatasetLayout, workers: Sequence[Worker]) -> list[ShardState]:
    here = socket.gethostname()
    places = {(worker.host or here, worker.number) for worker in workers}
    states = ProgressReader(layout).read()
    return [one for one in states if one.state == "running" and (one.host, one.process) in places]


def explained(
    error: BaseException, layout: DatasetLayout, ended: Sequence[Worker] = ()
) -> Exception:
    """Returns an error for people from what the runner raised.

    What failed on a shard is read from its progress file, where the worker left it; a job begins
    by forgetting those of earlier ones. An error of another step, or one of a disk that took no
    more files, is told by the runner alone.

    Args:
        ended: workers that ended by no doing of the job and not in order. Where no stage says that
            it failed, the runner's error is only the echo of that.
    """
    failed = [state for state in ProgressReader(layout).read() if state.state == "failed"]
    told = [state.error for state in failed if state.error is not None]
    for one in (*told, _told_by_runner(error)):
        if one.kind in FOR_PEOPLE:
            is_storage = one.kind == StorageError.__name__
            return FOR_PEOPLE[one.kind](f"{one.message}. {REMEDY}" if is_storage else one.message)
    if not failed and ended:
        return worker_died(layout, ended)
    where = "; ".join(place_of(state) for state in failed) or "the job"
    cause = told[0] if told else _told_by_runner(error)
    return JobFailed(f"{where} failed: {_shown(cause)}. Details: {job_log(layout)}. {REMEDY}")


def _told_by_runner(error: BaseException) -> WorkError:
    """Returns the error that the runner's stands for.

    Raised in this process, it is the error itself. From another, Beam's runner gives the text of
    its traceback, and the error in a line of it that begins with the name of its class.
    """
    own = WorkError.of(error)
    lines = [line.split(RUNNING, 1)[0] for line in own.message.splitlines()]
    if own.kind in FOR_PEOPLE or not lines:
        return replace(own, message=own.message.split(RUNNING, 1)[0])
    raised = [WorkError(kind=name, message=text, errno=None) for name, text in _raised(lines)]
    known = (one for one in raised if one.kind in FOR_PEOPLE)
    if type(error) is RuntimeError and raised:
        return next(known, raised[-1])
    return replace(own, message=lines[0])


def _raised(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields class and message of each line of a traceback that tells of an error."""
    for line in lines:
        name, colon, message = line.partition(": ")
        if colon and all(part.isidentifier() for part in name.split(".")):
            yield name.rsplit(".", 1)[-1], message


def _shown(error: WorkError) -> str:
    """Returns an error in a line; a full disk of temporary files with what to do about it."""
    if error.errno == errno.ENOSPC or f"[Errno {errno.ENOSPC}]" in error.message:
        temporary = Path(tempfile.gettempdir())
        return (
            f"no space left on a device; temporary files lie in {temporary} "
            f"({room_of(temporary)}): make room there, or set TMPDIR to another folder"
        )
    return f"{error.kind}: {(error.message.strip().splitlines() or [''])[0]}"
