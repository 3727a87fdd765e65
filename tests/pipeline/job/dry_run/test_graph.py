import threading

import apache_beam as beam
import pytest
from apache_beam.portability.python_urns import PICKLED_TRANSFORM
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipeline.job.begin import new_pipeline
from pipeline.job.dry_run.graph import has_dataflow, submitted_graph
from pipeline.job.runners import ChosenRunner, choose_runner
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout

LAYOUT = DatasetLayout("data")
EXTERNAL = (
    *("--job_endpoint=127.0.0.1:1", "--environment_type=EXTERNAL"),
    "--environment_config=127.0.0.1:2",
)
DATAFLOW = (
    "--project=some-project",
    "--region=europe-west4",
    "--temp_location=gs://bucket/tmp",
    "--sdk_container_image=registry/image:1",
)


def build(pipeline: beam.Pipeline) -> None:
    numbers = pipeline | beam.Create([1, 2]) | "Spread" >> beam.Reshuffle()
    hinted = beam.Map(lambda number: number + 1).with_resource_hints(accelerator="type:x;count:1")
    _ = numbers | "Add" >> hinted | "Sum" >> beam.CombineGlobally(sum)


def steps_of(proto) -> dict[str, tuple[str, bytes]]:
    steps = proto.components.transforms.values()
    return {
        step.unique_name: (step.spec.urn, step.spec.payload)
        for step in steps
        if step.spec.urn != PICKLED_TRANSFORM  # Beam pickles sets in it, whose order is chance
    }


def test_it_is_what_the_local_runner_is_given(monkeypatch):
    seen = []
    run = FnApiRunner.run_via_runner_api

    def looked_at(self, proto, options):
        seen.append(steps_of(proto))
        return run(self, proto, options)

    monkeypatch.setattr(FnApiRunner, "run_via_runner_api", looked_at)
    with new_pipeline(choose_runner("local", 1, (), LAYOUT)) as pipeline:
        build(pipeline)
    monkeypatch.undo()
    assert steps_of(submitted_graph(choose_runner("local", 1, (), LAYOUT), build)) == seen[0]


def test_it_is_what_a_job_server_is_given(monkeypatch):
    """Compared with what Beam's own runner hands to the client of a job server."""
    arrived = []

    class Client:
        def submit(self, proto):
            arrived.append(proto)
            raise InterruptedError

    monkeypatch.setattr(PortableRunner, "create_job_service", lambda runner, options: Client())
    with pytest.raises(InterruptedError):
        pipeline = new_pipeline(choose_runner("portable", 1, EXTERNAL, LAYOUT))
        build(pipeline)
        pipeline.run()
    graph = submitted_graph(choose_runner("portable", 1, EXTERNAL, LAYOUT), build)
    assert steps_of(graph) == steps_of(arrived[0])


def test_dataflow_gets_its_workers_image_and_hints():
    graph = submitted_graph(choose_runner("dataflow", 1, DATAFLOW, LAYOUT), build)
    environments = graph.components.environments.values()
    assert {one.urn for one in environments} == {"beam:env:docker:v1"}
    assert all(b"registry/image:1" in one.payload for one in environments)
    assert sorted(len(one.resource_hints) for one in environments) == [0, 1]


@pytest.mark.skipif(not has_dataflow(), reason="needs pip install 'apache-beam[gcp]'")
def test_dataflows_own_last_steps_are_taken_where_it_is_installed():
    chosen = choose_runner("dataflow", 1, DATAFLOW, LAYOUT)
    graph = submitted_graph(chosen, build)
    assert graph == chosen.runner.job.proto_pipeline


@pytest.mark.parametrize("held", [threading.Lock(), iter(())], ids=["lock", "generator"])
def test_what_cannot_be_pickled_is_refused_with_what_to_do(held):
    class Holding(beam.DoFn):
        def __init__(self) -> None:
            super().__init__()
            self.held = (number for number in [held])

        def process(self, number):
            yield number

    def wrong(pipeline: beam.Pipeline) -> None:
        _ = pipeline | beam.Create([1]) | "Hold" >> beam.ParDo(Holding())

    chosen: ChosenRunner = choose_runner("local", 1, (), LAYOUT)
    with pytest.raises(ConfigError, match=r"cannot be sent to workers: .*cannot pickle"):
        submitted_graph(chosen, wrong)
