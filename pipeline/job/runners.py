"""Beam's runners by name: which to take, which to refuse and why."""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineRunner, create_runner

from pipeline.job.local_workers import LocalWorkers
from pipeline.job.watch import WorkerWatch
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.storage import is_local, local_path

LOCAL = "local"

REFUSED = {
    "daskrunner": (
        "it loses data in silence: what finish_bundle yields is dropped, tagged outputs are mixed "
        "and only the last branch runs (seen with Beam 2.77)"
    ),
    "rayrunner": "the Ray runner on PyPI does not run with this version of Beam",
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

WITH_OWN_FLAGS = frozenset(PASSED_ON) - {"DataflowRunner"}
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
    """Looks after the worker processes on this machine."""

    @property
    def is_local(self) -> bool:
        """Whether the work is done on this machine, by this program's own processes."""
        return self.name == LOCAL


def runner_name(name: str) -> str:
    """Returns the exact name of a runner, whatever its case.

    Raises:
        ConfigError: if it is unknown, or known to lose data or not to work.
    """
    lowered = name.lower()
    if lowered in REFUSED:
        raise ConfigError(
            f"runner {name} is refused: {REFUSED[lowered]}. Use --runner local (with --workers N "
            f"for N processes), or one of {', '.join(PASSED_ON)} with its flags after --"
        )
    if lowered == "fnapirunner":
        return LOCAL
    for known in (LOCAL, *PASSED_ON):
        if known.lower() in (lowered, lowered + "runner"):
            return known
    raise ConfigError(
        f"runner {name!r} is unknown: use local, or one of {', '.join(PASSED_ON)} with its flags "
        "after --"
    )


def choose_runner(
    name: str, workers: int, beam_flags: Sequence[str], layout: DatasetLayout
) -> ChosenRunner:
    """Returns the runner of that name: in this process with 1 worker, in N processes with N.

    Raises:
        ConfigError: if the runner or a flag is not accepted.
    """
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}")
    exact = runner_name(name)
    options = _parse_options(beam_flags, has_flags_of_its_own=exact in WITH_OWN_FLAGS)
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
        runner=FnApiRunner(
            default_environment=LocalWorkers.watched(_worker_command(layout), watch)
        ),
        options=options,
        workers=workers,
        watch=watch,
    )


def _parse_options(beam_flags: Sequence[str], *, has_flags_of_its_own: bool) -> PipelineOptions:
    options = PipelineOptions(list(beam_flags))
    named = [flag for flag in beam_flags if flag.startswith("--runner")]
    if named:
        raise ConfigError(f"{named[0]} after --: name the runner before it, by --runner NAME")
    if has_flags_of_its_own:
        return options
    known = PipelineOptions().get_all_options()
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
