"""What the work on a dataset took, step by step: what `plan` reckons other sizes from.

Each process adds up what it has done of each stage and writes the sums anew after every piece, to
a file of its own in `_run/times/`. So a kill loses the piece that was under way and no more, a job
that goes on adds to what was done before it, and there are as many files as workers, not as pieces.
"""

import json
import os
import re
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace

from pipeline.dataset.processor_time import cpu_seconds
from schemas.errors import DatasetError, StorageError
from schemas.shards import DatasetLayout
from schemas.storage import commit_text, list_files, read_json, remove

REPORT = "report"
"""What the work on manifest and report goes by, which is none of the stages."""

CONTROLLED_SHARDS = 64
"""That the report's control of the scores reads at most, an even choice of them."""

TIMES_FILE = re.compile(r"([a-z]+)-[0-9a-f]{32}\.json")
"""Names of the files: the stage, and a number of the process's own."""

SPANS_KEPT = 64
"""Spans of time that are remembered: more than there are pieces at the same time."""


@dataclass(slots=True, kw_only=True)
class StepTime:
    """What a step of a stage took on one kind of device, added up over its pieces."""

    step: str
    device: str = "cpu"
    """cpu or cuda."""
    pieces: int = 0
    rows: int = 0
    seconds: float = 0.0
    """Of a worker, by the clock."""
    cpu_seconds: float = 0.0
    """Of all cores that worked for it, those of the decoding processes too."""
    bytes: int = 0
    """That passed and are not kept: downloads of `fetch`, temporary files of `deduplicate`."""
    processes: int = 0
    """That did pieces of it. The first piece of each, of which the next three tell, also loads and
    warms up what the process needs; the others do not. Where pieces are worked on at the same time
    and none is the first, the three are of starting alone, with no rows."""
    first_rows: int = 0
    first_seconds: float = 0.0
    first_cpu_seconds: float = 0.0
    flow_rows: int = 0
    """Rows in the middle of a process's work, after its beginning and before its end, where pieces
    are worked on at the same time and there are enough rows; the next two tell of them."""
    flow_seconds: float = 0.0
    flow_cpu_seconds: float = 0.0

    def add(self, other: "StepTime") -> None:
        """Adds more of the same step."""
        for one in fields(self):
            if one.name not in ("step", "device"):
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def as_first(self) -> "StepTime":
        """Returns a piece as the first one of its process."""
        return replace(
            self,
            processes=1,
            first_rows=self.rows,
            first_seconds=self.seconds,
            first_cpu_seconds=self.cpu_seconds,
        )


class Covered:
    """What of a clock was counted already: pieces at the same time share its time."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, begin: float, end: float) -> float:
        """Returns how much of a span lies in no span before it."""
        new = end - begin
        apart = []
        for span in self._spans:
            if span[1] < begin or end < span[0]:
                apart.append(span)
                continue
            new -= min(end, span[1]) - max(begin, span[0])
            begin, end = min(begin, span[0]), max(end, span[1])
        self._spans = [*apart, (begin, end)][-SPANS_KEPT:]
        return max(0.0, new)


@dataclass(slots=True)
class _Ledger:
    """The sums of this process for a stage of a dataset, and where they are written."""

    path: str | None
    """None where they are to be held until all of the work has succeeded."""
    steps: dict[tuple[str, str], StepTime]
    clock: Covered = field(default_factory=Covered)
    processor: Covered = field(default_factory=Covered)


_ledgers: dict[tuple[str, str], _Ledger] = {}
_lock = threading.Lock()


@contextmanager
def timed(
    layout: DatasetLayout, stage: str, step: str, *, tells_start: bool = False
) -> Iterator[StepTime]:
    """Times a piece of a step in the block, which says how many rows it had.

    What fails is not counted: a plan is of work that succeeds.

    Args:
        tells_start: whether the block also says what starting took, in `first_seconds` and
            `first_cpu_seconds`: pieces that overlap all wait for it, so that no piece tells it.
    """
    work = StepTime(step=step, pieces=1)
    started, cpu_started = time.perf_counter(), cpu_seconds()
    yield work
    with _lock:
        ended, cpu_ended = time.perf_counter(), cpu_seconds()
        ledger = _ledgers.get((layout.root, stage))
        if ledger is None:
            ledger = _Ledger(_new_path(layout, stage), {})
            _ledgers[layout.root, stage] = ledger
        # A worker may do several pieces at once: what all of them took is shared out.
        work.seconds = ledger.clock.add(started, ended)
        work.cpu_seconds = ledger.processor.add(cpu_started, cpu_ended)
        place = (step, work.device)
        if place in ledger.steps:
            ledger.steps[place].add(work)
        else:
            ledger.steps[place] = replace(work, processes=1) if tells_start else work.as_first()
        if ledger.path is not None:
            _write(ledger.path, ledger)


@contextmanager
def replacing_times(layout: DatasetLayout, stage: str) -> Iterator[None]:
    """Puts what the block takes of a stage in the place of what was known of it, if it succeeds."""
    ledger = _Ledger(None, {})
    with _lock:
        _ledgers[layout.root, stage] = ledger
    try:
        yield
    finally:
        with _lock:
            _ledgers.pop((layout.root, stage), None)
    before = _files(layout, {stage})
    if _write(_new_path(layout, stage), ledger):
        for path in before:
            remove(path)


def _new_path(layout: DatasetLayout, stage: str) -> str:
    return f"{_folder(layout)}/{stage}-{uuid.uuid4().hex}.json"


def _write(path: str, ledger: _Ledger) -> bool:
    """Returns whether the sums could be written."""
    steps = [asdict(one) for one in ledger.steps.values()]
    # As of progress: a full disk must fail at the file that the work is for.
    with suppress(StorageError):
        commit_text(path, json.dumps({"cores": _cores(), "steps": steps}))
        return True
    return False


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def begin_times(layout: DatasetLayout) -> None:
    """Forgets what this process has added up of a dataset: a new job writes files of its own."""
    with _lock:
        for place in [place for place in _ledgers if place[0] == layout.root]:
            del _ledgers[place]


def forget_times(layout: DatasetLayout, stages: Iterable[str]) -> None:
    """Removes what is known of the work of some stages, whose output is removed too."""
    begin_times(layout)
    for path in _files(layout, set(stages)):
        remove(path)


def read_times(layout: DatasetLayout, stage: str) -> list[StepTime]:
    """Returns what each step of a stage took, all processes and jobs together.

    Raises:
        DatasetError: if a file of the folder does not say it.
    """
    found: dict[tuple[str, str], StepTime] = {}
    for path in _files(layout, {stage}):
        for one in _read_file(path):
            place = (one.step, one.device)
            found.setdefault(place, StepTime(step=one.step, device=one.device)).add(one)
    return [found[place] for place in sorted(found)]


def _read_file(path: str) -> list[StepTime]:
    known = {field.name for field in fields(StepTime)}
    try:
        steps = read_json(path)["steps"]
        return [StepTime(**{name: step[name] for name in known & step.keys()}) for step in steps]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"{path} does not say what work took ({error!r}): remove it to do without"
        ) from error


def _files(layout: DatasetLayout, stages: Collection[str]) -> list[str]:
    paths = []
    for path in list_files(_folder(layout), ".json"):
        name = TIMES_FILE.fullmatch(path.rsplit("/", 1)[-1])
        if name is not None and name[1] in stages:
            paths.append(path)
    return paths


def _folder(layout: DatasetLayout) -> str:
    return f"{layout.run}/times"
