"""A curation job from its lock to its summary: what stands around the graph."""

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import CurationConfig
from pipeline.curate import NOT_DECIDING, curate
from pipeline.dataset.credentials import refuse_passwords, texts_of
from pipeline.dataset.derivation import refuse_derived
from pipeline.dataset.edges import ALL_SOURCES, read_old_edges
from pipeline.dataset.guard import (
    config_path,
    guard_folder,
    has_output,
    refuse_foreign_folder,
    remove_leftovers,
    remove_outputs,
)
from pipeline.dataset.ownership import recorded_folder
from pipeline.dataset.progress import ProgressReader, forget_unfinished
from pipeline.dataset.worktimes import begin_times
from pipeline.fetch.retry import RetrySession, begin_retry, end_retry, finish_moves
from pipeline.job.attempts import Attempts
from pipeline.job.begin import begin_attempt, new_pipeline
from pipeline.job.causes import print_causes
from pipeline.job.failures import WorkersLost, place_of
from pipeline.job.inspection import remember_inspections
from pipeline.job.lock import hold_folder
from pipeline.job.log import logging_to_folder
from pipeline.job.paths import absolute_config, absolute_inputs, absolute_layout
from pipeline.job.ray.options import RayOptions
from pipeline.job.runners import LOCAL, RAY, UNSHARED_HOSTS, ChosenRunner, choose_runner
from pipeline.job.sight import sights_of
from pipeline.job.terminal import scoring_pace, summary_table
from pipeline.job.watched import run_watched
from pipeline.level.signals import check_level_settings, signals_of, uses_signals
from pipeline.read.inputs import InputFile, check_inputs, refuse_inputs_within
from pipeline.report.balance import count_stages
from pipeline.report.write import write_report
from pipeline.score.precision import (
    SettledPrecision,
    record_precision,
    settle_precision,
    with_recorded,
    with_settled,
)
from pipeline.score.signals import check_signals
from schemas.command_line import format_seconds
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.manifest import Manifest
from schemas.memory import large_imports
from schemas.progress import at_work
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, is_folder, is_local, list_files, local_path, read_json
from schemas.terminal import Console
from scoring.devices import require_device
from scoring.signals.names import parse_signals

HANDED_OVER = (
    "The graph is handed over, and this program is done. Once the job has ended, "
    "`aligngpt-curate report --out {root}` writes manifest and report; meanwhile start nothing "
    "else on that folder, which nobody holds."
)
"""What is said where a graph is run later by others."""


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
    inputs: tuple[InputFile, ...] = ()
    """The same, opened and checked by `with_checked_inputs`."""
    runner: str = "local"
    workers: int = 1
    ray: RayOptions | None = None
    beam_flags: tuple[str, ...] = ()
    redo: Stage | None = None
    """Remove first what this stage and the stages after it made."""
    retry: tuple[str, ...] | None = None
    """Ask again for what was rejected for these reasons, for every retryable one if empty."""


def run_job(job: Job, console: Console) -> Manifest | None:
    """Returns the manifest, if the job writes one, when all of its stages are done.

    Raises:
        ConfigError: before any work, if the job cannot start.
        DatasetError: if the folder does not hold what the stages need.
        JobFailed: if a stage or a worker failed.
    """
    layout = DatasetLayout(job.root)
    started = time.monotonic()
    refuse_job_passwords(job)
    chosen = choose_runner(job.runner, job.workers, job.beam_flags, layout, job.ray)
    if Stage.READ in job.stages:
        refuse_inputs_within(layout, job.files, job.config.read)
    job = with_checked_inputs(job)
    _refuse_without_dataset(job, layout)
    refuse_foreign_folder(layout)
    with (
        hold_folder(layout) as left_behind,
        recorded_folder(layout, console.print) as record,
        logging_to_folder(layout),
    ):
        if left_behind is not None:
            console.print(f"An earlier job ended early ({left_behind}); going on where it was.")
        with at_work("looking at what is done"):
            unfinished = forget_unfinished(layout)
        for state in unfinished:
            console.print(f"  it had not finished {place_of(state)}")
        remove_leftovers(layout)
        begin_times(layout)
        finish_moves(layout)
        job, settled = with_settled_precision(job, layout, console)
        check_stages(job, runs_here=chosen.is_local)
        if job.redo is not None:
            remove_outputs(layout, job.redo, record)
        guard_folder(layout, job.config, job.stages, NOT_DECIDING)
        record.begin(job.stages, has_report=job.has_report)
        if settled is not None:
            record_precision(layout, settled)
        if job.stages:
            shards = () if job.stages[0] is Stage.READ else shards_before(layout, job.stages[0])
            session = None if job.retry is None else begin_retry(layout, job.retry)
            _run_stages(job, layout, chosen, shards, session, console)
            if chosen.hands_over:
                record.is_handed_over = True
                handed_over = HANDED_OVER.format(root=job.root)
                console.print(handed_over, highlight=False, markup=False, soft_wrap=True)
                return None
            if session is not None:
                console.print(end_retry(layout, session))
        with at_work("report: reading what the stages left" if job.has_report else "adding up"):
            manifest = write_report(layout, job.config) if job.has_report else None
            stages = manifest.stages if manifest is not None else count_stages(layout)
    console.print(summary_table(stages))
    print_causes(layout, stages, console)
    print_pace(layout, job.stages, console)
    _print_warning(manifest, console)
    console.print(f"Done in {format_seconds(time.monotonic() - started)}: {layout.root}")
    return manifest


def _refuse_without_dataset(job: Job, layout: DatasetLayout) -> None:
    """Raises what is wrong where a job is to go on with a dataset that is not there."""
    if is_local(layout.root) and exists(layout.root) and not is_folder(layout.root):
        raise ConfigError(f"--out {layout.root} is a file: give a folder")
    if Stage.READ not in job.stages and not exists(layout.root):
        raise DatasetError(f"there is no folder {layout.root}: run `read` or `curate` first")
    if not job.stages and not exists(config_path(layout)):
        raise DatasetError(f"{layout.root} holds no dataset: run `curate` first")


def refuse_job_passwords(job: Job) -> None:
    """Raises `ConfigError` if one of the paths of a job holds a password."""
    refuse_passwords([job.root, *job.files, *texts_of(dataclasses.asdict(job.config))])


def _print_warning(manifest: Manifest | None, console: Console) -> None:
    """Says so where score, signals or captions by a model hardly tell anything of the pairs."""
    for warning in () if manifest is None else manifest.warnings:
        console.print(warning, style="yellow", highlight=False, markup=False)


def print_pace(layout: DatasetLayout, stages: Sequence[Stage], console: Console) -> None:
    """Says which side of scoring waited for the other, if the job scored."""
    pace = scoring_pace(ProgressReader(layout).read()) if Stage.SCORE in stages else None
    if pace is not None:
        console.print(pace, highlight=False)


def with_checked_inputs(job: Job) -> Job:
    """Returns the job with its input files opened and checked, if it reads them.

    Raises:
        ConfigError: if one is missing, damaged, or without the columns that are needed.
    """
    if Stage.READ not in job.stages:
        return job
    inputs = tuple(check_inputs(job.files, job.config.read))
    return replace(job, inputs=inputs, config=with_image_folders(job.config, inputs))


def with_settled_precision(
    job: Job, layout: DatasetLayout, console: Console
) -> tuple[Job, SettledPrecision | None]:
    """Returns the job with the precision of its scores; what it was settled by, if it scores."""
    if Stage.SCORE not in job.stages:
        return replace(job, config=with_recorded(layout, job.config)), None
    settled = settle_precision(layout, job.config, job.redo)
    console.print(str(settled), highlight=False, markup=False)
    if settled.warning is not None:
        console.print(settled.warning, style="yellow", highlight=False, markup=False)
    return replace(job, config=with_settled(job.config, settled)), settled


def check_stages(job: Job, *, runs_here: bool) -> None:
    """Raises what a stage would only find out when its turn comes, hours after the start.

    Args:
        runs_here: whether the stages will run on this machine, so that their devices must be here.

    Raises:
        ConfigError: if the model cannot be loaded, old edges do not fit, a GPU is not there, or the
            folder was made from other datasets.
        DatasetError: if old edges cannot be read, or the stage before has not done all shards.
    """
    check_levels(job)
    if job.stages and job.stages[0] is not Stage.READ:
        shards_before(DatasetLayout(job.root), job.stages[0])  # before a model is downloaded
    if Stage.DEDUPLICATE in job.stages and runs_here:
        require_device(job.config.deduplicate.device, "deduplicate.device")
    if Stage.SCORE in job.stages:
        check_signals(job.config.score, runs_here=runs_here)
        # torch and open_clip take seconds to start: only a job that scores waits for them.
        with large_imports():
            from scoring.clip.scorer import check_model
        check_model(job.config.score, runs_here=runs_here)
    if Stage.RECAPTION in job.stages:
        with large_imports():
            from scoring.itm.writer import check_writer
        check_writer(job.config.recaption, job.config.score, runs_here=runs_here)


def check_levels(job: Job) -> None:
    """Raises what `check_stages` does, as far as neither a model nor a GPU is needed to find it."""
    if job.stages:
        refuse_derived(DatasetLayout(job.root))
    if Stage.LEVEL in job.stages:
        check_signals_of_levels(job)
        old = read_old_edges(job.config.levels)
        if old is not None and ALL_SOURCES not in old.groups:
            for source in input_names(job):
                old.group_of(source)


def check_signals_of_levels(job: Job) -> None:
    """Raises `ConfigError` unless the signals that decide the levels are there, or will be."""
    if uses_signals(job.config.levels):
        layout = DatasetLayout(job.root)
        signals = [spec.name for spec in parse_signals(job.config.score.signals)]
        if Stage.SCORE not in job.stages:
            scored = sorted(_committed(layout, Stage.SCORE))
            signals = [*signals_of(layout, scored[0])] if scored else []
        check_level_settings(job.config.levels, signals)


def input_names(job: Job) -> list[str]:
    """Returns what `source` will say of the pairs: the names of the files read now or before."""
    if Stage.READ in job.stages:
        return [file.name for file in job.inputs]
    marker = f"{DatasetLayout(job.root).run}/read.json"
    files = read_json(marker)["files"] if exists(marker) else []
    return [path.rstrip("/").rsplit("/", 1)[-1] for path in files]


def with_image_folders(config: CurationConfig, inputs: Sequence[InputFile]) -> CurationConfig:
    """Returns the configuration with leave to read images from the folders that the input names.

    A path in a row is read only below a folder that the person who runs the job has named: as
    read.image_folder, as an input folder of images, or by giving a LLaVA JSON that lies in it.

    Raises:
        ConfigError: if a folder is not there.
    """
    folders = [file.image_folder for file in inputs]
    for folder in folders:
        if folder is not None and is_local(folder) and not Path(local_path(folder)).is_dir():
            raise ConfigError(f"{folder}, where images are to be, is not a folder")
    named = sorted({folder for folder in folders if folder} - set(config.fetch.allow_folders))
    if not named:
        return config
    allowed = (*config.fetch.allow_folders, *named)
    return replace(config, fetch=replace(config.fetch, allow_folders=allowed))


def with_shared_cores(config: CurationConfig, workers: int, cores: int = 0) -> CurationConfig:
    """Returns the configuration with decoders and searches for one worker of several on a machine.

    Args:
        workers: processes that share this machine's cores; 0 if they are elsewhere.
        cores: of each worker that is elsewhere; 0 if it has a machine of its own.
    """
    if workers < 2 and not cores:
        return config
    share = cores or max(1, len(os.sched_getaffinity(0)) // workers)
    fetch, search = config.fetch, config.deduplicate
    return replace(
        config,
        fetch=replace(fetch, decode_processes=fetch.decode_processes or share),
        deduplicate=replace(search, threads=search.threads or share),
    )


def with_shared_hosts(config: CurationConfig, runner: str, workers: int) -> CurationConfig:
    """Returns the configuration with how many workers share a host, where the job knows it.

    Args:
        workers: that were asked for; fewer than those ask a host less than they may.
    """
    if config.fetch.sharing_workers or runner not in (LOCAL, RAY):
        return config
    return replace(config, fetch=replace(config.fetch, sharing_workers=workers))


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
    if stage is Stage.PACK and not has_output(layout, Stage.SCORE):
        return Stage.FETCH
    if stage is Stage.PACK and not has_output(layout, Stage.RECAPTION):
        return Stage.LEVEL
    return tuple(Stage)[stage.number - 1]


def _committed(layout: DatasetLayout, stage: Stage) -> set[int]:
    names = [
        path.rsplit("/", 1)[-1].removesuffix(stage.marker)
        for path in list_files(layout.folder(stage), stage.marker)
    ]
    return {int(name) for name in names if name.isdecimal()}


def _run_stages(
    job: Job,
    layout: DatasetLayout,
    chosen: ChosenRunner,
    shards: Sequence[int],
    session: RetrySession | None,
    console: Console,
) -> None:
    """Runs the stages to their end, in as many attempts as it takes and the runner is given."""
    remember_inspections()
    there = absolute_layout(layout)
    config = with_shared_cores(absolute_config(job.config), chosen.workers, chosen.cores)
    config = with_shared_hosts(config, chosen.name, job.workers)
    if Stage.FETCH in job.stages and not config.fetch.sharing_workers:
        console.print(f"Note: {UNSHARED_HOSTS}.", highlight=False, markup=False)
    inputs = absolute_inputs(job.inputs)
    sights = () if chosen.is_local else sights_of(there, config, job.stages, inputs)
    attempts = Attempts(layout, chosen.attempts)
    while True:
        try:
            begun = begin_attempt(chosen, job.workers, there, sights, console)
            pipeline = new_pipeline(begun)
            curate(pipeline, there, config, job.stages, inputs, shards, session)
            run_watched(pipeline, layout, job.stages, begun.watch, console)
            return
        except (WorkersLost, StorageError) as failure:
            console.print(attempts.next_after(failure), highlight=False, markup=False)
        forget_unfinished(layout)
        remove_leftovers(layout)
        finish_moves(layout)
