import dataclasses

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.config import CurationConfig
from pipeline.curate import curate
from pipeline.job.dry_run import checks
from pipeline.job.dry_run.checks import (
    dataflow_faults,
    hint_faults,
    notes_of,
    size_faults,
    stage_graphs,
)
from pipeline.job.dry_run.graph import submitted_graph
from pipeline.job.runners import DATAFLOW, choose_runner
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import DeduplicateConfig, ScoreConfig

STAGES = [stage for stage in CurationConfig().stages if stage is not Stage.READ]
LAYOUT = DatasetLayout("unused")


def graph_of(config: CurationConfig, *flags: str):
    def build(pipeline: beam.Pipeline) -> None:
        curate(pipeline, LAYOUT, config, STAGES, shards=range(8))

    return submitted_graph(choose_runner("portable", 1, flags, LAYOUT), build)


@pytest.fixture(scope="module")
def config() -> CurationConfig:
    return CurationConfig(
        score=ScoreConfig(device="cuda"), deduplicate=DeduplicateConfig(device="cuda")
    )


@pytest.fixture(scope="module")
def proto(config):
    return graph_of(config)


def test_hints_stand_on_scoring_and_the_search_alone(proto, config):
    graphs = stage_graphs(proto)
    hinted = {name: graph.hints for name, graph in graphs.items() if graph.hints}
    gpu = config.score.accelerator
    assert hinted == {"Score": {gpu: {"Score"}}, "Deduplicate": {gpu: {"Train", "Spill", "Search"}}}
    assert hint_faults(graphs, config) == []
    assert [name for name in graphs if not name.startswith("Spread")] == [
        *("Start", "Fetch", "Score", "Deduplicate", "Level", "Pack")
    ]


@pytest.mark.slow
def test_a_hint_on_every_step_is_refused(config):
    graphs = stage_graphs(graph_of(config, "--resource_hint=accelerator=type:x;count:1"))
    (fault,) = hint_faults(graphs, config)
    asking, _, rest = fault.partition(" ask for ")
    assert {"Start", "Fetch", "Level", "Pack"} <= set(asking.split(", "))
    assert not {"Score", "Deduplicate"} & set(asking.split(", "))
    assert rest.startswith("type:x;count:1, which only scoring")


def test_memory_may_be_asked_for_by_every_step(config):
    graphs = stage_graphs(graph_of(CurationConfig(), "--resource_hint=min_ram=4GB"))
    assert set(graphs["Fetch"].hints) == {"min_ram_bytes=4000000000"}
    assert hint_faults(graphs, CurationConfig()) == []


def test_a_gpu_that_no_step_asks_for_is_missed(config):
    graphs = stage_graphs(graph_of(CurationConfig()))
    assert [fault.partition(",")[0] for fault in hint_faults(graphs, config)] == [
        "score.device is cuda",
        "deduplicate.device is cuda",
    ]
    assert hint_faults(graphs, CurationConfig()) == []


def test_a_graph_that_is_too_large_is_refused_with_the_stage_that_makes_it_so(proto, monkeypatch):
    assert size_faults(proto, DATAFLOW) == []
    monkeypatch.setattr(checks, "DATAFLOW_BYTES", proto.ByteSize() - 1)
    (fault,) = size_faults(proto, DATAFLOW)
    assert f"{proto.ByteSize():,} bytes" in fault
    assert "most of it in Level" in fault
    assert size_faults(proto, "PortableRunner") == []


def test_dataflow_names_all_flags_that_are_missing():
    assert [fault.partition(" ")[0] for fault in dataflow_faults(PipelineOptions([]))] == [
        *("--project", "--region", "--temp_location", "--sdk_container_image")
    ]
    flags = ["--project=p", "--region=r", "--temp_location=/tmp/x", "--sdk_container_image=i"]
    assert dataflow_faults(PipelineOptions(flags)) == [
        "--temp_location /tmp/x must be a folder in a bucket, as gs://BUCKET/tmp"
    ]


def test_a_device_that_asks_for_no_gpu_is_noted(config):
    notes = notes_of(DATAFLOW, CurationConfig(), list(Stage))
    assert any(note.startswith("score.device is auto: no step asks for a GPU") for note in notes)
    assert not any("auto" in note for note in notes_of(DATAFLOW, config, list(Stage)))
    cpu = dataclasses.replace(config, score=ScoreConfig(device="auto"))
    assert notes_of("local", cpu, list(Stage)) == []
