"""A curation up to the moment at which it would be submitted: built, checked and shown.

Nothing is written and nothing is sent. Inputs are opened, as the job would open them; the model is
not, since a published one would be downloaded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import apache_beam as beam
from rich.table import Table

from pipeline.config import CurationConfig
from pipeline.curate import NOT_DECIDING, curate
from pipeline.dataset.guard import as_json, refuse_foreign_folder, refuse_other_settings
from pipeline.job.dry_run.checks import (
    StageGraph,
    dataflow_faults,
    hint_faults,
    notes_of,
    size_faults,
    stage_graphs,
)
from pipeline.job.dry_run.elsewhere import faults_elsewhere
from pipeline.job.dry_run.gcloud import gcloud_command
from pipeline.job.dry_run.graph import submitted_graph
from pipeline.job.dry_run.leaks import leaks_of, places_of
from pipeline.job.inspection import remember_inspections
from pipeline.job.paths import absolute_config, absolute_inputs, absolute_layout
from pipeline.job.run import Job, check_levels, refuse_job_passwords, with_checked_inputs
from pipeline.job.runners import DATAFLOW, ChosenRunner, choose_runner
from pipeline.job.sight import OUTPUT, needs_of, refuse_local_needs, refuse_missing_needs
from pipeline.read.inputs import refuse_inputs_within
from schemas.errors import ConfigError
from schemas.memory import large_imports
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console
from scoring.signals.names import parse_signals


def dry_run(job: Job, words: Sequence[str], console: Console) -> None:
    """Shows the graph of a curation, once it is found fit to be submitted.

    Args:
        words: of the command line, for the command that runs the same from a template.

    Raises:
        ConfigError: if it is not; the message has all that was found.
    """
    layout = DatasetLayout(job.root)
    refuse_job_passwords(job)
    as_json(job.config)  # a recipe may have set what cannot be recorded
    chosen = choose_runner(job.runner, job.workers, job.beam_flags, layout, job.ray, connects=False)
    if chosen.name == DATAFLOW:
        _refuse(dataflow_faults(chosen.options))
    refuse_inputs_within(layout, job.files, job.config.read)
    job = with_checked_inputs(job)
    refuse_foreign_folder(layout)
    refuse_other_settings(layout, job.config, job.stages, NOT_DECIDING)
    check_levels(job)
    there, config = absolute_layout(layout), absolute_config(job.config)
    job = replace(job, inputs=absolute_inputs(job.inputs))
    needs = needs_of(config, job.stages, job.inputs)
    refuse_missing_needs(needs)
    if chosen.name == DATAFLOW:
        needs = [(OUTPUT, there.root), *needs]
        refuse_local_needs(needs, "Dataflow's workers have no disk of this machine")
    if Stage.SCORE in job.stages:
        with large_imports():
            from scoring.clip.checkpoints import refuse_unknown_model
        refuse_unknown_model(config.score)
    proto = _graph(chosen, there, config, job)
    graphs = stage_graphs(proto)
    named = [there.root, *(path for _, path in needs), *(file.path for file in job.inputs)]
    _refuse(list(_faults(proto, graphs, chosen, config, named)))
    _show(proto, graphs, chosen, console)
    for note in notes_of(chosen.name, config, job.stages):
        console.print(f"Note: {note}.", highlight=False, markup=False)
    if chosen.name == DATAFLOW:
        command = gcloud_command(words, job.beam_flags)
        console.print("\nFrom the flex template (docs/other-runners.md):", highlight=False)
        console.print(command, highlight=False, markup=False, soft_wrap=True)


def _graph(chosen: ChosenRunner, layout: DatasetLayout, config: CurationConfig, job: Job) -> Any:
    remember_inspections()

    def build(pipeline: beam.Pipeline) -> None:
        curate(pipeline, layout, config, job.stages, job.inputs)

    return submitted_graph(chosen, build)


def _faults(
    proto: Any,
    graphs: dict[str, StageGraph],
    chosen: ChosenRunner,
    config: CurationConfig,
    named: Sequence[str],
) -> Iterator[str]:
    signals = parse_signals(config.score.signals)
    functions = [spec.argument for spec in signals if spec.kind == "function"]
    options = chosen.options.get_all_options(drop_default=True, retain_unknown_options=True)
    yield from hint_faults(graphs, config)
    yield from size_faults(proto, chosen.name)
    # Workers of this machine have its paths; those of a cluster have what the user says they share.
    yield from leaks_of(places_of(proto, options), None if chosen.is_local else named)
    yield from faults_elsewhere(proto, functions)


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        found = "".join(f"\n  - {fault}" for fault in faults)
        raise ConfigError(f"the job cannot be submitted as it is:{found}")


def _show(
    proto: Any, graphs: dict[str, StageGraph], chosen: ChosenRunner, console: Console
) -> None:
    table = Table(title=f"The graph for {chosen.name}; nothing was run", title_justify="left")
    table.add_column("stage", style="bold")
    for heading in ("steps", "shuffles", "bytes"):
        table.add_column(heading, justify="right")
    table.add_column("asks for", overflow="fold")
    for name, graph in graphs.items():
        hints = [f"{hint} ({', '.join(sorted(steps))})" for hint, steps in graph.hints.items()]
        counts = (f"{graph.steps:,}", f"{graph.shuffles:,}", f"{graph.payload_bytes:,}")
        table.add_row(name, *counts, "; ".join(hints))
    console.print(table)
    steps = sum(graph.steps for graph in graphs.values())
    console.print(
        f"{steps} steps, {proto.ByteSize():,} bytes in all. Each was unpickled in a process of its "
        f"own; {'no' if chosen.is_local else 'no path of this machine and no'} secret of this "
        "environment is in them.",
        highlight=False,
    )
