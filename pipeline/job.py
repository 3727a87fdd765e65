"""A curation job from its lock to its summary: what stands around the graph."""

import logging
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
from apache_beam.runners.runner import PipelineState
from rich.console import Console

from pipeline.config import CurationConfig
from pipeline.curate import NOT_DECIDING, curate
from pipeline.lock import hold_folder
from pipeline.progress import ProgressReader, ShardState, forget_unfinished
from pipeline.report import write_report
from pipeline.resume import FOLDERS, guard_folder, remove_outputs
from pipeline.runners import ChosenRunner, choose_runner
from pipeline.storage import is_local, list_files, local_path
from pipeline.terminal import ProgressDisplay, format_seconds, summary_table
from pipeline.watch import WorkerWatch
from pipeline.worker import worker_log
from schemas.errors import ConfigError, DatasetError, Stage
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout

PAUSE_SECONDS = 0.25
"""Between two looks at the job's thread and workers."""

MARKERS = {
    Stage.READ: ".parquet",
    Stage.FETCH: "_stats.json",
    Stage.SCORE: ".parquet",
    Stage.DEDUPLICATE: ".parquet",
    Stage.LEVEL: ".parquet",
}
"""Stage to the end of the name of the file that it writes last for a shard."""


class JobFailed(Exception):
    """The job ended before its work was done; the message says where. It can be run again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do, where and by whom."""

    root: str
    """Folder or fsspec URL of the dataset."""
    config: CurationConfig
    stages: tuple[Stage, ...]
    """In their order, without gaps; empty for the report alone."""
    has_report: bool
    """Whether manifest and report are written when the stages are done."""
    files: tuple[str, ...] = ()
    """Where the pairs are, if they are read."""
    runner: str = "local"
    workers: int = 1
    beam_flags: tuple[str, ...] = ()
    redo: Stage | None = None
    """Remove first what this stage and the stages after it made."""


def run_job(job: Job, console: Console) -> Manifest | None:
    """Returns the manifest, if the job writes one, when all of its stages are done.

    Raises:
        ConfigError: before any work, if the job cannot start.
        DatasetError: if the folder does not hold what the stages need.
        JobFailed: if a stage or a worker failed.
    """
    layout = DatasetLayout(job.root)
    started = time.monotonic()
    chosen = choose_runner(job.runner, job.workers, job.beam_flags, layout)
    with hold_folder(layout) as left_behind:
        if left_behind is not None:
            console.print(f"An earlier job ended early ({left_behind}); going on where it was.")
        for state in forget_unfinished(layout):
            console.print(f"  it had not finished {place_of(state)}")
        if job.redo is not None:
            remove_outputs(layout, job.redo)
        guard_folder(layout, job.config, job.stages, NOT_DECIDING)
        if job.stages:
            shards = () if job.stages[0] is Stage.READ else shards_before(layout, job.stages[0])
            _run_stages(job, layout, chosen, shards, console)
        manifest = write_report(layout, job.config) if job.has_report else None
    if manifest is not None:
        console.print(summary_table(manifest.stages))
    console.print(f"Done in {format_seconds(time.monotonic() - started)}: {layout.root}")
    return manifest


def shards_before(layout: DatasetLayout, stage: Stage) -> list[int]:
    """Returns the shards that a stage starts from.

    Raises:
        DatasetError: if the stage before it has not done all of them.
    """
    before = stage_before(layout, stage)
    wanted = _committed(layout, Stage.READ)
    if not wanted:
        raise DatasetError(f"{layout.root} has no pairs: run `read` or `curate` first")
    ready = _committed(layout, before)
    missing = sorted(wanted - ready)
    if missing:
        raise DatasetError(
            f"{stage.value} needs what {before.value} makes, which is missing for "
            f"{len(missing)} of {len(wanted)} shards (the first: {missing[0]:05d}): "
            f"run `{before.value}` first"
        )
    return sorted(wanted)


def stage_before(layout: DatasetLayout, stage: Stage) -> Stage:
    """Returns the stage whose output a stage takes: packing takes unscored samples as fetched."""
    stages = list(Stage)
    before = stages[stages.index(stage) - 1]
    if stage is Stage.PACK and not list_files(f"{layout.root}/{FOLDERS[Stage.SCORE]}"):
        return Stage.FETCH
    return before


def _committed(layout: DatasetLayout, stage: Stage) -> set[int]:
    suffix = MARKERS[stage]
    names = [
        path.rsplit("/", 1)[-1].removesuffix(suffix)
        for path in list_files(f"{layout.root}/{FOLDERS[stage]}", suffix)
    ]
    return {int(name) for name in names if name.isdecimal()}


def place_of(state: ShardState) -> str:
    """Returns where a piece of work was, for people."""
    return (
        f"shard {state.shard:05d} in stage {state.stage.value} "
        f"({state.rows_done:,} of {state.total:,} pairs done, process {state.process} "
        f"on {state.host})"
    )


class _PipelineThread(threading.Thread):
    """Runs the pipeline, so that the main thread can watch it; keeps the error it ended with."""

    def __init__(self, pipeline: beam.Pipeline) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._pipeline = pipeline
        self.error: BaseException | None = None
        self.state: str = PipelineState.UNKNOWN

    def run(self) -> None:
        try:
            result = self._pipeline.run()
            self.state = result.wait_until_finish() or result.state
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error


def _run_stages(
    job: Job,
    layout: DatasetLayout,
    chosen: ChosenRunner,
    shards: Sequence[int],
    console: Console,
) -> None:
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    started = time.time()
    pipeline = beam.Pipeline(runner=chosen.runner, options=chosen.options)
    curate(pipeline, layout, job.config, job.stages, job.files, shards)
    thread = _PipelineThread(pipeline)
    watch = WorkerWatch()
    try:
        with ProgressDisplay(layout, job.stages, console) as display:
            thread.start()
            while thread.is_alive():
                thread.join(PAUSE_SECONDS)
                display.refresh()
                lost = watch.lost() if thread.is_alive() else []
                if lost:
                    raise JobFailed(_worker_obituary(layout, lost))
    finally:
        if thread.is_alive():
            watch.end_all()
    if thread.error is not None:
        raise _explained(thread.error, layout, started) from thread.error
    if thread.state != PipelineState.DONE:
        raise JobFailed(f"runner {chosen.name} ended the job in the state {thread.state}")


def _worker_obituary(layout: DatasetLayout, lost: Sequence[int]) -> str:
    """Returns which worker died over which shard, and what to do."""
    states = ProgressReader(layout).read()
    at_work = [state for state in states if state.state == "running" and state.process in lost]
    numbers = ", ".join(str(number) for number in lost)
    where = "; ".join(place_of(state) for state in at_work) or "no shard was in its hands"
    log = ""
    if is_local(layout.root):
        paths = [worker_log(Path(local_path(layout.run)) / "logs", number) for number in lost]
        log = f" Its output: {', '.join(str(path) for path in paths)}."
    return (
        f"a worker died hard (process {numbers}): {where}. Often it ran out of memory or was "
        f"killed.{log} What is committed stays: run the same command again to go on"
    )


def _explained(
    error: BaseException, layout: DatasetLayout, started_unix_seconds: float
) -> Exception:
    """Returns an error for people from what the runner raised.

    A worker's error crosses process borders as text; a wrong configuration that only a worker can
    see (a model that is not there) is found in it.
    """
    if isinstance(error, (ConfigError, DatasetError)):
        return error
    text = str(error)
    for kind in (ConfigError, DatasetError):
        found = re.search(rf"^(?:schemas\.errors\.)?{kind.__name__}: (.*)", text, re.MULTILINE)
        if found:
            return kind(re.sub(r" \[while running '.*'\]$", "", found.group(1)))
    states = ProgressReader(layout).read()
    failed = [
        state
        for state in states
        if state.state == "failed" and state.time_unix_seconds >= started_unix_seconds
    ]
    where = "; ".join(place_of(state) for state in failed) or _running_part(text)
    cause = next((line for line in reversed(text.splitlines()) if line.strip()), repr(error))
    return JobFailed(
        f"{where or 'the job'} failed: {cause}. What is committed stays: run the same command "
        "again to go on"
    )


def _running_part(text: str) -> str:
    found = re.search(r"\[while running '([^']*)'\]", text)
    return f"stage {found.group(1).split('/')[0].lower()}" if found else ""
