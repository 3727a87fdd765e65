"""Beam's runners by name: which to take, which to refuse and why."""

import difflib
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipeline.job.local_workers import LocalRunner, LocalWorkers
from pipeline.job.ray.options import RayOptions
from pipeline.job.watch import WorkerWatch
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path

LOCAL = "local"
RAY = "ray"
DATAFLOW = "DataflowRunner"

REFUSED = {
    "daskrunner": (
        "it loses data in silence: what finish_bundle yields is dropped, tagged outputs are mixed "
        "and only the last branch runs (seen with Beam 2.77)"
    ),
    "rayrunner": (
        "the Ray runner on PyPI does not run with this version of Beam; ours is --runner ray"
    ),
    "pysparkrunner": "the PySpark runner on PyPI does not run with this version of Beam",
    "directrunner": (
        "it looks for a Go program on the internet first and then falls back to what `local` is"
    ),
    "switchingdirectrunner": (
        "it looks for a Go program on the internet first and then falls back to what `local` is"
    ),
    "bundlebaseddirectrunner": "it holds every element in memory and runs in one thread",
    "interactiverunner": "it caches every collection for a notebook",
    "kafkastreamsrunner": "it is for streams, this job is a batch",
}
"""Runner to the reason why it is not used. Source: environment tests with Beam 2.77."""

PASSED_ON = (
    "PortableRunner",
    "PrismRunner",
    "DataflowRunner",
    "FlinkRunner",
    "SparkRunner",
)
"""Runners that get the graph and the Beam flags as they are."""

UNSHARED_HOSTS = (
    "the runner does not tell how many workers there will be, so that each asks a host as much as "
    "fetch.connections_per_host and its crawl delay allow: give the most that fetch at once by "
    "--fetch.sharing-workers, and they share it (on Dataflow --max_num_workers times the vCPUs of "
    "a worker)"
)

WITH_OWN_FLAGS = frozenset(PASSED_ON) - {DATAFLOW}
"""Runners whose job server may know flags that Beam does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRunner:
    """A runner with its options."""

    name: str
    runner: PipelineRunner
    options: PipelineOptions
    workers: int
    """Worker processes on this machine; 0 where the runner has its own."""
    watch: WorkerWatch = field(default_factory=WorkerWatch)
    """Looks after the workers that this process started."""
    ray: RayOptions | None = None
    """How to start workers on a Ray cluster, if that is where they are."""

    @property
    def is_local(self) -> bool:
        """Whether the work is done on this machine, by this program's own processes."""
        return self.name == LOCAL

    @property
    def hands_over(self) -> bool:
        """Whether the graph is left to be run later, as a flex template's image does with it."""
        return bool(self.options.view_as(GoogleCloudOptions).template_location)

    @property
    def attempts(self) -> int:
        """How often in vain the job may begin; runners with a service begin anew themselves."""
        return 1 if self.ray is None else self.ray.attempts

    @property
    def cores(self) -> int:
        """Cores of each worker that is started on a cluster; 0 if it may take all."""
        return 0 if self.ray is None else max(1, int(self.ray.worker_cpus))


def runner_name(name: str) -> str:
    """Returns the exact name of a runner, whatever its case.

    Raises:
        ConfigError: if it is unknown, or known to lose data or not to work.
    """
    lowered = name.lower()
    if lowered in REFUSED:
        raise ConfigError(
            f"runner {name} is refused: {REFUSED[lowered]}. Use --runner local (with --workers N "
            f"for N processes), --runner ray on a Ray cluster, or one of {', '.join(PASSED_ON)} "
            "with its flags after --"
        )
    if lowered == "fnapirunner":
        return LOCAL
    for known in (LOCAL, RAY, *PASSED_ON):
        if known.lower() in (lowered, lowered + "runner"):
            return known
    raise ConfigError(
        f"runner {name!r} is unknown: use local, ray, or one of {', '.join(PASSED_ON)} with its "
        "flags after --"
    )


def choose_runner(
    name: str,
    workers: int,
    beam_flags: Sequence[str],
    layout: DatasetLayout,
    ray: RayOptions | None = None,
    *,
    connects: bool = True,
) -> ChosenRunner:
    """Returns the runner of that name: in this process with 1 worker, in N processes with N.

    Args:
        connects: whether the job will run, so that a cluster must be there.

    Raises:
        ConfigError: if the runner or a flag is not accepted.
    """
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    exact = runner_name(name)
    options = _parse_options(beam_flags, has_flags_of_its_own=exact in WITH_OWN_FLAGS)
    if exact == RAY:
        # Which workers there are is found out anew for each attempt.
        ray = ray or RayOptions()
        if connects:
            connect_to_ray(ray)
        return ChosenRunner(name=RAY, runner=FnApiRunner(), options=options, workers=0, ray=ray)
    if ray is not None and ray != RayOptions():
        named = next(part.name for part in fields(ray) if getattr(ray, part.name) != part.default)
        raise ConfigError(f"--{named.replace('_', '-')} is for --runner ray, not for {exact}")
    if exact != LOCAL:
        if workers != 1:
            raise ConfigError(
                f"--workers {workers} is for --runner local: give {exact} its own flags after --"
            )
        return ChosenRunner(name=exact, runner=create_runner(exact), options=options, workers=0)
    if workers == 1:
        return ChosenRunner(name=LOCAL, runner=FnApiRunner(), options=options, workers=1)
    options.view_as(DirectOptions).direct_num_workers = workers
    watch = WorkerWatch()
    return ChosenRunner(
        name=LOCAL,
        runner=LocalRunner(
            default_environment=LocalWorkers.watched(_worker_command(layout), watch)
        ),
        options=options,
        workers=workers,
        watch=watch,
    )


def connect_to_ray(options: RayOptions) -> None:
    """Connects this process to a Ray cluster.

    Raises:
        ConfigError: if Ray is not installed, or there is no cluster.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--runner ray needs Ray: pip install 'aligngpt[curate,ray]'")
    from pipeline.job.ray.cluster import connect

    connect(options.ray_address)


def _parse_options(beam_flags: Sequence[str], *, has_flags_of_its_own: bool) -> PipelineOptions:
    options = PipelineOptions(list(beam_flags))
    named = [flag for flag in beam_flags if flag.startswith("--runner")]
    if named:
        raise ConfigError(f"{named[0]} after --: name the runner before it, by --runner NAME")
    if has_flags_of_its_own:
        return options
    known = PipelineOptions([]).get_all_options()
    unknown = set(options.get_all_options(retain_unknown_options=True)) - set(known)
    if unknown:
        name = min(unknown)
        similar = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean --{similar[0]}?" if similar else ""
        raise ConfigError(f"Beam knows no flag --{name}, which stands after --{hint}")
    return options


def _worker_command(layout: DatasetLayout) -> list[str]:
    """Returns the command of a worker process, which is told whose it is."""
    words = [sys.executable, "-P", "-m", "pipeline.job.worker", str(os.getpid())]
    if is_local(layout.root):
        words.append(str(Path(local_path(layout.run)).absolute()))
    return words
