"""The beginning of an attempt: its workers are chosen, made ready, and see what the job sees."""

import functools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import apache_beam as beam

from pipeline.dataset.guard import code_sha256
from pipeline.job.code_paths import forget_code_paths
from pipeline.job.fence import keep_within_fence, raise_fence
from pipeline.job.inspection import remember_inspections
from pipeline.job.lock import hold_as_worker, wait_for_workers
from pipeline.job.ray.options import RayOptions
from pipeline.job.runners import DATAFLOW, RAY, ChosenRunner
from pipeline.job.sight import Sight, refuse_local_paths, refuse_other_sight
from pipeline.job.watch import WorkerWatch
from pipeline.job.watched import run_watched
from schemas.arithmetic import keep_products_reproducible
from schemas.errors import ConfigError
from schemas.memory import keep_freed_memory
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path
from schemas.terminal import Console

_HELD: list[object] = []
"""Open files whose locks say that this worker process is alive."""


def begin_attempt(
    chosen: ChosenRunner,
    workers: int,
    layout: DatasetLayout,
    sights: Sequence[Sight],
    console: Console,
) -> ChosenRunner:
    """Returns a runner whose workers see what this process sees, and alone write to the folder.

    Args:
        workers: how many the job asks a Ray cluster for.
        layout: with an absolute root.

    Raises:
        ConfigError: if workers do not see the job's paths, or the runner does not take its flags.
    """
    if chosen.name == RAY and chosen.ray is not None:
        return _on_ray(chosen, chosen.ray, workers, layout, sights, console)
    if chosen.name == DATAFLOW:
        new_pipeline(chosen)  # its flags first: that is quickly mended
        refuse_local_paths(sights, "Dataflow's workers have no disk of this machine")
    elif not chosen.is_local:
        pipeline = new_pipeline(chosen)
        one = pipeline | "Look" >> beam.Create([None])
        _ = one | "Compare" >> beam.Map(_see, tuple(sights))
        run_watched(pipeline, layout, (), chosen.watch, console)
    return chosen


def new_pipeline(chosen: ChosenRunner) -> beam.Pipeline:
    """Returns an empty pipeline.

    Raises:
        ConfigError: if the runner does not accept its flags.
    """
    forget_code_paths()
    try:
        return beam.Pipeline(runner=chosen.runner, options=chosen.options)
    except ValueError as error:
        faults = " ".join(str(error).split())
        raise ConfigError(f"{chosen.name} does not accept the flags after --: {faults}") from error


def _see(nothing: None, sights: Sequence[Sight]) -> None:
    refuse_other_sight(sights)


def _on_ray(
    chosen: ChosenRunner,
    options: RayOptions,
    workers: int,
    layout: DatasetLayout,
    sights: Sequence[Sight],
    console: Console,
) -> ChosenRunner:
    from pipeline.job.ray.cluster import WorkerNeeds
    from pipeline.job.ray.runner import RayRunner

    needs = WorkerNeeds(cpus=options.worker_cpus, memory_bytes=options.worker_memory_bytes)
    with suppress(ConfigError):  # one that is cut off cannot end: the fence keeps it out
        wait_for_workers(layout)
    token = raise_fence(layout)
    prepare = functools.partial(prepare_worker, layout, token, tuple(sights), code_sha256())
    watch = WorkerWatch()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    runner = RayRunner(workers, options.gpu_workers, needs, watch, say, prepare)
    return replace(chosen, runner=runner, watch=watch)


def prepare_worker(layout: DatasetLayout, token: str, sights: Sequence[Sight], code: str) -> None:
    """Makes this worker process ready for a job: it sees its paths and writes while it may.

    Raises:
        ConfigError: if it is of other code than the job, or sees other files.
    """
    if code_sha256() != code:
        raise ConfigError(
            "a worker has another version of aligngpt than this job: install the same on all "
            "nodes, or start them from one image"
        )
    refuse_other_sight(sights)
    keep_products_reproducible()
    keep_freed_memory()
    if is_local(layout.root):
        _HELD.append(hold_as_worker(Path(local_path(layout.run))))
    keep_within_fence(layout, token)
    remember_inspections()
