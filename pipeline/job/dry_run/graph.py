"""The graph of a job as its runner would be given it, taken at the moment before it is sent."""

import pickle
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions, WorkerOptions
from apache_beam.runners.dataflow import dataflow_runner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineRunner
from apache_beam.transforms.environments import DockerEnvironment, python_sdk_dependencies

from pipeline.job.begin import new_pipeline
from pipeline.job.runners import DATAFLOW, ChosenRunner
from schemas.errors import ConfigError


def submitted_graph(chosen: ChosenRunner, build: Callable[[beam.Pipeline], object]) -> Any:
    """Returns the proto of a pipeline, as the runner would get it.

    Of `--runner ray` it lacks what belongs to one attempt: the address that its workers call.

    Args:
        build: adds the steps to an empty pipeline.

    Raises:
        ConfigError: if the runner does not accept its flags, or a step cannot be pickled.
    """
    pipeline = new_pipeline(chosen)
    try:
        build(pipeline)
        return _translated(chosen, pipeline)
    except (RuntimeError, TypeError, pickle.PicklingError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        hint = ""
        if "pickle" in said:
            hint = ". What a step holds must be data: no open file, connection, lock or model"
        raise ConfigError(f"the graph cannot be sent to workers: {said}{hint}") from error


def has_dataflow() -> bool:
    """Returns whether the packages that submit a job to Dataflow are installed."""
    return dataflow_runner.dataflow_api is not None


def _translated(chosen: ChosenRunner, pipeline: beam.Pipeline) -> Any:
    runner, options = chosen.runner, chosen.options
    if chosen.name == DATAFLOW and has_dataflow():
        options.view_as(TestOptions).dry_run = True
        return runner.run_pipeline(pipeline, options).job.proto_pipeline
    if chosen.name == DATAFLOW:
        runner = _DataflowGraph()
    caught: list[Any] = []
    # The last call before a graph leaves Beam's hands for a service, or for its own workers.
    last = "run_via_runner_api" if isinstance(runner, FnApiRunner) else "run_portable_pipeline"
    setattr(runner, last, lambda proto, options: caught.append(proto))
    runner.run_pipeline(pipeline, options)
    (proto,) = caught
    if isinstance(runner, PortableRunner):
        return PortableRunner._optimize_pipeline(proto, options)
    return proto


class _DataflowGraph(PipelineRunner):
    """Translates a graph for Dataflow where the packages that submit it are not installed."""

    def default_environment(self, options: PipelineOptions) -> Any:
        """Returns the image that workers run in."""
        image = options.view_as(WorkerOptions).sdk_container_image
        dependencies = python_sdk_dependencies(options)
        return DockerEnvironment.from_container_image(image, artifacts=dependencies)
