"""How far the job is: workers leave small files, the terminal adds them up, on every runner."""

import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.dataset.finished import FIELDS, read_finished, write_finished
from schemas.errors import StorageError
from schemas.many_files import read_many, remove_many
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    is_local,
    list_files,
    local_path,
    read_bytes,
)

JOINED_FILES = 1_000
"""Progress files of finished shards from which on they are joined into one."""

NUMBERS = {stage: stage.number for stage in Stage}

ShardId = tuple[Stage, int]

STEP_FILE = re.compile(r"([a-z0-9-]+\.(?=.*\.done))?[a-z]+-[a-z]*\.(plan|done)")
"""Names of the files that tell of steps: one for the plan, one of each process for what it did."""


_PROCESS = uuid.uuid4().hex
"""With its number, what tells this process from those of other hosts."""
_ended: dict[tuple[str, str], set[str]] = {}
"""Of each folder, file of this process to the pieces of a step that it has ended."""
_ended_lock = threading.Lock()


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
    """Announces that a piece of a step is done.

    Each process counts its pieces in a file of its own: a file for each piece would be millions.
    """
    with _ended_lock:
        name = f"{_progress_folder(layout)}/{_PROCESS}-{os.getpid()}.{stage.value}-{step}.done"
        pieces = _ended.setdefault((layout.root, name), set())
        pieces.add(str(piece))
        with suppress(StorageError):
            commit_text(name, str(len(pieces)))


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
        self._layout, self._folder = layout, _progress_folder(layout)
        self._known: dict[str, tuple[int, ShardState]] = {}
        self._finished: dict[ShardId, ShardState] | None = None

    def read(self) -> list[ShardState]:
        """Returns the state of every shard that any stage has begun, by stage and shard.

        Raises:
            DatasetError: if the list of finished shards is damaged.
        """
        states = {**self.finished, **{_id_of(state): state for _, state in self.read_files()}}
        return sorted(states.values(), key=_by_stage_and_shard)

    @property
    def finished(self) -> dict[ShardId, ShardState]:
        """What earlier attempts have finished and joined into one file."""
        if self._finished is None:
            rows = map(_state_of, read_finished(self._layout))
            self._finished = {_id_of(state): state for state in rows}
        return self._finished

    def read_files(self) -> list[tuple[str, ShardState]]:
        """Returns path and content of each progress file."""
        new: dict[str, int] = {}
        for path in list_files(self._folder, ".json"):
            version = _version(path)
            known = self._known.get(path)
            if known is None or version != known[0] or (version == 0 and known[1].state != "done"):
                new[path] = version
        for (path, version), content in zip(new.items(), read_many(list(new)), strict=True):
            if content is not None:
                self._known[path] = (version, _state_of(json.loads(content)))
        return [(path, state) for path, (_, state) in self._known.items()]

    def read_steps(self) -> list[StepState]:
        """Returns how far each step is that was announced, by stage."""
        files = _step_files(self._folder)
        ended = [path for path in files if path.endswith(".done")]
        done: Counter[str] = Counter()
        for path, count in zip(ended, read_many(ended), strict=True):
            # Files of before were empty, and of one piece each.
            done[path.rsplit(".", 2)[-2]] += int(count or 1)
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
    return [path for path in list_files(folder) if STEP_FILE.fullmatch(path.rsplit("/", 1)[-1])]


def _by_stage_and_shard(state: ShardState) -> tuple[int, int]:
    return NUMBERS[state.stage], state.shard


def _id_of(state: ShardState) -> ShardId:
    return state.stage, state.shard


def _version(path: str) -> int:
    """Returns the time of a local file's last change, in nanoseconds; 0 where it is unknown."""
    if not is_local(path):
        return 0
    try:
        return Path(local_path(path)).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _state_of(values: dict[str, Any]) -> ShardState:
    """Returns what a progress file says, from its object."""
    error = values.get("error")
    told = {
        "state": "done",
        **values,
        "stage": Stage(values["stage"]),
        "host": sys.intern(values["host"]),
        "error": None if error is None else WorkError(**error),
    }
    return ShardState(**told)


def forget_unfinished(layout: DatasetLayout) -> list[ShardState]:
    """Removes the progress of shards that were not finished; returns what it said of them.

    Nobody works on the folder meanwhile. Where many are finished, their progress is joined.
    """
    reader = ProgressReader(layout)
    states = reader.read()
    files = reader.read_files()
    with _ended_lock:
        for place in [place for place in _ended if place[0] == layout.root]:
            del _ended[place]
    unfinished = [state for state in states if state.state != "done"]
    done = [path for path, state in files if state.state == "done"]
    # What is listed as finished and was begun anew must not seem to be finished again.
    if len(done) >= JOINED_FILES or any(_id_of(state) in reader.finished for state in unfinished):
        _list_finished(layout, states)
        remove_many(done)
    remove_many([path for path, state in files if state.state != "done"])
    remove_many(_step_files(_progress_folder(layout)))
    return unfinished


def forget_stages(layout: DatasetLayout, stages: Collection[Stage]) -> None:
    """Removes the progress of all shards of some stages."""
    reader = ProgressReader(layout)
    if any(stage in stages for stage, _ in reader.finished):
        left = [state for state in reader.finished.values() if state.stage not in stages]
        _list_finished(layout, left)
    remove_many([path for path, state in reader.read_files() if state.stage in stages])


def _list_finished(layout: DatasetLayout, states: Iterable[ShardState]) -> None:
    done = (state for state in states if state.state == "done")
    write_finished(
        layout, ({name: getattr(state, name) for name in FIELDS.names} for state in done)
    )


def progress_path(layout: DatasetLayout, stage: Stage, shard: int) -> str:
    """Returns the path of a shard's progress in a stage."""
    return f"{_progress_folder(layout)}/{stage.value}-{shard:05d}.json"
