"""How far the job is: workers leave small files, the terminal adds them up, on every runner."""

import json
import os
import re
import socket
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from schemas.errors import StorageError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    is_local,
    list_files,
    local_path,
    read_bytes,
    read_json,
    remove,
)

STEP_FILE = re.compile(r"([a-z0-9-]+\.(?=.*\.done))?[a-z]+-[a-z]*\.(plan|done)")
"""Names of the files that tell of steps: one for its plan, one for each piece that is done."""


class WorkAbandoned(Exception):
    """Nobody wants this work any more: another, done at the same time, has failed."""


class ShardProgress:
    """Says how many of a shard's rows a stage has done, at most once in a while.

    The file is also the worker's sign of life: it names the host and the process.
    """

    def __init__(self, layout: DatasetLayout, stage: Stage, shard: int, total: int) -> None:
        self._path = progress_path(layout, stage, shard)
        self._stage, self._shard, self._total = stage, shard, total
        self._pause_seconds = 0.5 if is_local(layout.root) else 10.0
        self._written_at = -1e9
        self._state = "running"
        self._kept = self._rejected = 0
        self._error: WorkError | None = None
        self.downloaded_bytes = 0
        """What came over the network for the shard, of answers that arrived whole."""
        self._seconds: dict[str, float] = {}

    def took(self, seconds: dict[str, float]) -> None:
        """Takes what parts of the work took, by name; it is told when the work has ended."""
        self._seconds = seconds

    def update(self, kept: int, rejected: int) -> None:
        """Takes the rows done so far, kept and rejected."""
        self._kept, self._rejected = kept, rejected
        if time.monotonic() - self._written_at >= self._pause_seconds:
            self._write()

    def __enter__(self) -> "ShardProgress":
        """Announces that the work on the shard has begun."""
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Announces that the work has ended, well or not, and by what error."""
        self._state = "done" if error is None else "failed"
        if isinstance(error, WorkAbandoned):
            self._state = "stopped"
        elif error is not None:
            self._error = WorkError.of(error)
        self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        values = {
            "stage": self._stage.value,
            "shard": self._shard,
            "total": self._total,
            "kept": self._kept,
            "rejected": self._rejected,
            "state": self._state,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "time_unix_seconds": time.time(),
            "error": self._error and asdict(self._error),
            "seconds": self._seconds,
        }
        # A full disk must fail at the file that the work is for; this one only tells of it.
        with suppress(StorageError):
            commit_text(self._path, json.dumps(values))


def begin_step(layout: DatasetLayout, stage: Stage, step: str, total: int) -> None:
    """Announces a part of a stage that is none of a shard's, and how many pieces it has.

    Without a name it is the stage itself, and the pieces are its rows, 0 if nobody knows.
    """
    with suppress(StorageError):
        commit_text(f"{_progress_folder(layout)}/{stage.value}-{step}.plan", str(total))


def end_piece(layout: DatasetLayout, stage: Stage, step: str, piece: str | int) -> None:
    """Announces that a piece of a step is done."""
    with suppress(StorageError):
        commit_text(f"{_progress_folder(layout)}/{piece}.{stage.value}-{step}.done", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """How far a step of a stage is."""

    stage: Stage
    step: str
    total: int
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkError:
    """An error that ended the work on a shard, as it crosses from one process to another."""

    kind: str
    """Name of its class."""
    message: str
    errno: int | None
    """The operating system's number, if the error is its."""

    @classmethod
    def of(cls, error: BaseException) -> "WorkError":
        """Returns what there is to tell of an error."""
        number = error.errno if isinstance(error, OSError) else None
        return cls(kind=type(error).__name__, message=str(error), errno=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """What a progress file says."""

    stage: Stage
    shard: int
    total: int
    kept: int
    rejected: int
    state: str
    """running, done, failed, or stopped since other work failed."""
    host: str
    process: int
    time_unix_seconds: float
    error: WorkError | None = None
    """What the work failed of."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What parts of the work took, by name."""

    @property
    def rows_done(self) -> int:
        """Rows that the stage has decided on."""
        return self.kept + self.rejected


class ProgressReader:
    """Reads the progress files of a folder again and again, each only when it may have changed."""

    def __init__(self, layout: DatasetLayout) -> None:
        self._folder = _progress_folder(layout)
        self._known: dict[str, tuple[int, ShardState]] = {}

    def read(self) -> list[ShardState]:
        """Returns the state of every shard that any stage has begun, by stage and shard."""
        for path in list_files(self._folder, ".json"):
            version = _version(path)
            known = self._known.get(path)
            if known is None or version != known[0] or (version == 0 and known[1].state != "done"):
                state = _read_state(path)
                if state is not None:
                    self._known[path] = (version, state)
        return [state for _, state in sorted(self._known.values(), key=_by_stage_and_shard)]

    def read_steps(self) -> list[StepState]:
        """Returns how far each step is that was announced, by stage."""
        files = _step_files(self._folder)
        done = Counter(path.rsplit(".", 2)[-2] for path in files if path.endswith(".done"))
        steps = []
        for path in files:
            name, _, kind = path.rsplit("/", 1)[-1].rpartition(".")
            stage, _, step = name.partition("-")
            if kind != "plan":
                continue
            with suppress(FileNotFoundError):
                total = int(read_bytes(path))
                steps.append(StepState(stage=Stage(stage), step=step, total=total, done=done[name]))
        return sorted(steps, key=lambda step: (step.stage.number, step.step))


def _progress_folder(layout: DatasetLayout) -> str:
    return f"{layout.run}/progress"


def _step_files(folder: str) -> list[str]:
    paths = [path for suffix in (".plan", ".done") for path in list_files(folder, suffix)]
    return [path for path in paths if STEP_FILE.fullmatch(path.rsplit("/", 1)[-1])]


def _by_stage_and_shard(item: tuple[int, ShardState]) -> tuple[int, int]:
    return item[1].stage.number, item[1].shard


def _version(path: str) -> int:
    """Returns the time of a local file's last change, in nanoseconds; 0 where it is unknown."""
    if not is_local(path):
        return 0
    try:
        return Path(local_path(path)).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read_state(path: str) -> ShardState | None:
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None
    error = values.pop("error", None)
    return ShardState(
        **{**values, "stage": Stage(values["stage"])},
        error=None if error is None else WorkError(**error),
    )


def forget_unfinished(layout: DatasetLayout) -> list[ShardState]:
    """Removes the progress of shards that were not finished; returns what it said of them."""
    unfinished = [state for state in ProgressReader(layout).read() if state.state != "done"]
    for state in unfinished:
        remove(progress_path(layout, state.stage, state.shard))
    for path in _step_files(_progress_folder(layout)):
        remove(path)
    return unfinished


def progress_path(layout: DatasetLayout, stage: Stage, shard: int) -> str:
    """Returns the path of a shard's progress in a stage."""
    return f"{_progress_folder(layout)}/{stage.value}-{shard:05d}.json"
