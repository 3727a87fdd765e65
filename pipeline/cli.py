"""The command `aligngpt-curate`."""

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import tyro

from pipeline.commands import (
    COMMANDS,
    Browse,
    Command,
    Curate,
    Fetch,
    Inspect,
    Merge,
    Plan,
    Publish,
    Purge,
    Report,
    Rescore,
    Retry,
    RunOptions,
    Select,
    Verify,
)
from pipeline.config import CurationConfig
from pipeline.dataset.guard import config_from_json, stored_config
from pipeline.fetch.http.proxy import hide_credentials
from pipeline.recipes import RECIPES, laion_pairs
from schemas.arithmetic import keep_products_reproducible
from schemas.command_line import print_commands, print_error, value_of
from schemas.disk import refusal_in_words
from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.memory import keep_freed_memory, large_imports
from schemas.options import parse_options
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console, prepare_output

MORE_HELP = (
    f"Recipes: {', '.join(RECIPES)}. Each command explains its options: "
    "aligngpt-curate COMMAND --help"
)
STATUS_FAILED = 1
STATUS_REFUSED = 2
STATUS_INTERRUPTED = 130
STATUS_TERMINATED = 143
"""128 and the signal's number, as a shell says it of a program that does not handle it."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, which is as good as by Ctrl-C."""


def main() -> None:
    """Runs the command line; the process ends with 0, 1 (failed), 2 (refused) or a signal's."""
    prepare_output()
    # Threads that spin while they wait steal the core from the thread that they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_products_reproducible()
    keep_freed_memory()  # for who begins here; `pipeline.start` does so first
    # Libraries warn while they are imported, before there is a folder to log to.
    logging.basicConfig(handlers=[logging.NullHandler()])
    signal.signal(signal.SIGTERM, _terminate)
    status = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if status in (STATUS_FAILED, STATUS_INTERRUPTED, STATUS_TERMINATED):
        # Beam's threads may wait for ever for a worker that is gone.
        os._exit(status)
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Returns the exit status of a command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print_commands("aligngpt-curate COMMAND [OPTIONS] [-- BEAM FLAGS]", COMMANDS, MORE_HELP)
        return 0
    try:
        words, beam_flags = split_beam_flags(arguments)
        command = parse(words)
        if isinstance(command, Curate) and command.dry_run:
            return rehearse(command, hide_credentials(words), beam_flags)
        return execute(command, beam_flags)
    except (ConfigError, DatasetError) as error:
        print_error(str(error))
        return STATUS_REFUSED
    except StorageError as error:
        print_error(str(error))
        return STATUS_FAILED
    except PermissionError as error:
        said = refusal_in_words(error)
        if said is None:
            raise
        print_error(said)
        return STATUS_REFUSED
    except KeyboardInterrupt as request:
        print_error("stopped; what is committed stays: run the same command again to go on")
        return STATUS_TERMINATED if isinstance(request, Terminated) else STATUS_INTERRUPTED


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the command in order; asked a second time, the process ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def split_beam_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns our own arguments, and the runner's, which stand after `--`."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def parse(arguments: Sequence[str]) -> Command:
    """Returns the command that the arguments name, its defaults taken from recipe or folder.

    Raises:
        ConfigError: if there is no such command or recipe, or a setting is not allowed.
    """
    name, rest = arguments[0], hide_credentials(arguments[1:])
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}: use one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    base = base_config(command, value_of(rest, "--recipe"), value_of(rest, "--out"))
    defaults: dict[str, Any] = {}
    for part in dataclasses.fields(command):
        if part.name == "config":
            defaults["config"] = base
        elif part.name in {part.name for part in dataclasses.fields(CurationConfig)}:
            defaults[part.name] = getattr(base, part.name)
        elif part.default is part.default_factory is dataclasses.MISSING:
            defaults[part.name] = tyro.MISSING
    default = command(**defaults)
    parsed: Command = parse_options(command, rest, f"aligngpt-curate {name}", default)
    return parsed


def base_config(command: type, recipe: str | None, out: str | None) -> CurationConfig:
    """Returns the configuration that flags override.

    Raises:
        ConfigError: if there is no such recipe.
    """
    if recipe is not None:
        if recipe not in RECIPES:
            raise ConfigError(f"no recipe {recipe!r}: use one of {', '.join(RECIPES)}")
        return RECIPES[recipe]()
    if out is not None and command is not Curate:
        stored = stored_config(DatasetLayout(out))
        if stored is not None:
            return config_from_json(stored)
    return laion_pairs()


def execute(command: Command, beam_flags: Sequence[str]) -> int:
    """Returns the exit status of a parsed command."""
    if isinstance(command, (Inspect, Plan, Verify, Rescore, Browse)):
        return look(command)
    if isinstance(command, (Select, Merge)):
        return select(command)
    if isinstance(command, Publish):
        return publish(command)
    if isinstance(command, Purge):
        return purge(command)
    with large_imports():
        from pipeline.job.failures import JobFailed
        from pipeline.job.run import Job, run_job

    job = Job(**job_settings(command), beam_flags=tuple(beam_flags))
    try:
        run_job(job, Console(markup=False))
    except JobFailed as error:
        print_error(str(error))
        return STATUS_FAILED
    return 0


def rehearse(command: Curate, words: Sequence[str], beam_flags: Sequence[str]) -> int:
    """Returns 0 if a curation could be submitted as it is."""
    with large_imports():
        from pipeline.job.dry_run.run import dry_run
        from pipeline.job.run import Job

    job = Job(**job_settings(command), beam_flags=tuple(beam_flags))
    dry_run(job, words, Console(markup=False))
    return 0


def look(command: Inspect | Plan | Verify | Rescore | Browse) -> int:
    """Returns the exit status of a command that changes nothing."""
    if isinstance(command, Inspect):
        from pipeline.report.inspect import inspect_dataset

        inspect_dataset(command.dataset)
        return 0
    if isinstance(command, Verify):
        from pipeline.report.verify import verify_dataset

        try:
            found = verify_dataset(command.dataset, is_quick=command.quick)
            Console(markup=False).print(str(found), highlight=False)
        except DatasetError as error:
            print_error(str(error))
            return STATUS_FAILED
        return 0
    if isinstance(command, Rescore):
        return rescore(command)
    if isinstance(command, Plan):
        return plan(command)
    from pipeline.browse.page import serve

    with suppress(KeyboardInterrupt):
        serve(command.dataset, command.port, say_address)
    return 0


def say_address(address: str) -> None:
    """Prints where a page is."""
    print(f"Open {address} on this machine; Ctrl-C ends it.", flush=True)


def rescore(command: Rescore) -> int:
    """Returns 0 if the sample's scores are reproduced, 1 if they are not."""
    with large_imports():
        from pipeline.score.rescore import rescore_dataset

    report = rescore_dataset(
        command.dataset,
        command.sample,
        command.model,
        command.pretrained,
        itm_trust_remote_code=command.itm_trust_remote_code,
    )
    print(report)
    return 0 if report.is_reproduced else STATUS_FAILED


def select(command: Select | Merge) -> int:
    """Returns 0 once the samples that a command chooses are a dataset of their own."""
    from pipeline.select.run import Selection, make_selection

    selection = Selection(
        command="select" if isinstance(command, Select) else "merge",
        parents=(command.dataset,) if isinstance(command, Select) else command.datasets,
        where=command.where if isinstance(command, Select) else None,
        num_levels=command.cut_levels,
        samples_per_shard=command.samples_per_shard,
    )
    make_selection(selection, command.out, Console(markup=False))
    return 0


def plan(command: Plan) -> int:
    """Returns 0 once it is said what so many pairs take."""
    from pipeline.plan.forecast import Resources
    from pipeline.plan.run import print_plan

    resources = Resources(
        workers=command.workers,
        gpus=command.gpus,
        gpu_pairs_per_second=command.gpu_pairs_per_second,
        price_worker_hour=command.price_worker_hour,
        price_gpu_hour=command.price_gpu_hour,
    )
    price, pairs = command.price_terabyte_month, int(command.pairs)
    print_plan(command.datasets, pairs, resources, price, Console(markup=False))
    return 0


def publish(command: Publish) -> int:
    """Returns 0 once the publication is whole."""
    from pipeline.publish.card import About
    from pipeline.publish.run import publish_dataset

    about = About(
        name=command.name or command.out.rstrip("/").rsplit("/", 1)[-1],
        form=command.form,
        licence=command.licence,
        language=command.language,
    )
    ratio, size = command.validation_ratio, command.samples_per_shard
    publish_dataset(command.dataset, command.out, about, ratio, size, Console(markup=False))
    return 0


def purge(command: Purge) -> int:
    """Returns 0 once nothing that the lists name is left."""
    from pipeline.dataset.deny import DenyFiles
    from pipeline.purge.run import purge_dataset

    files = DenyFiles(command.deny_urls, command.deny_hosts, command.deny_hashes)
    purge_dataset(command.dataset, files, Console(markup=False))
    return 0


def job_settings(command: Command) -> dict[str, Any]:
    """Returns what a command asks of the job."""
    if isinstance(command, Retry):
        from pipeline.fetch.retry import retry_settings

        chosen = {"runner": command.runner, "workers": command.workers, "ray": command.ray}
        return retry_settings(command.dataset, command.reasons) | chosen
    assert isinstance(command, (RunOptions, Report))
    config = full_config(command)
    settings: dict[str, Any] = {"root": command.out, "config": config}
    if isinstance(command, RunOptions):
        settings |= {name: getattr(command, name) for name in ("redo", "runner", "workers", "ray")}
    files = tuple(getattr(command, "pairs", ()))
    if isinstance(command, Curate):
        stages = config.stages
    elif isinstance(command, Fetch) and files:
        stages = (Stage.READ, Stage.FETCH)
    else:
        stages = command.stages
    has_report = isinstance(command, (Curate, Report))
    return settings | {"files": files, "stages": stages, "has_report": has_report}


def full_config(command: RunOptions | Report) -> CurationConfig:
    """Returns the whole configuration of a command that shows a part of it.

    Raises:
        ConfigError: if the parts do not go together.
    """
    if isinstance(command, Curate):
        return command.config
    base = base_config(type(command), command.recipe, command.out)
    parts = {part.name for part in dataclasses.fields(CurationConfig)}
    own = {
        part.name: getattr(command, part.name)
        for part in dataclasses.fields(command)
        if part.name in parts
    }
    return dataclasses.replace(base, **own)
