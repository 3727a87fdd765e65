"""What a runner makes of the graph: which stages share a worker, and which ask for a GPU."""

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import translations

from pipeline.config import CurationConfig
from pipeline.curate import curate, name_of
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import DeduplicateConfig, ScoreConfig

GPU_STEPS = {"Score", "Recaption", "Train", "Spill", "Search"}

STAGES = [stage for stage in Stage if stage is not Stage.READ]


def graph(device: str, search_device: str = "cpu") -> beam.Pipeline:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    config = CurationConfig(
        score=ScoreConfig(device=device), deduplicate=DeduplicateConfig(device=search_device)
    )
    curate(pipeline, DatasetLayout("unused"), config, STAGES, shards=range(8))
    return pipeline


def fused(pipeline: beam.Pipeline) -> list[set[str]]:
    """Returns which of our stages have steps in each of the parts that Beam runs as one."""
    _, parts = translations.create_and_optimize_stages(
        pipeline.to_runner_api(),
        phases=[
            translations.annotate_downstream_side_inputs,
            translations.fix_side_input_pcoll_coders,
            translations.expand_sdf,
            translations.expand_gbk,
            translations.greedily_fuse,
        ],
        known_runner_urns=frozenset(["beam:transform:group_by_key:v1"]),
    )
    names = {name_of(stage) for stage in STAGES}
    return [{step.unique_name.split("/")[0] for step in part.transforms} & names for part in parts]


def test_no_two_stages_are_fused_so_that_shards_spread_over_workers_anew_for_each():
    parts = fused(graph("cpu"))
    assert {name for part in parts for name in part} == {name_of(stage) for stage in STAGES}
    assert [part for part in parts if len(part) > 1] == []


@pytest.mark.parametrize(
    ("score", "search", "asking"),
    [
        ("cpu", "auto", set()),
        ("cuda", "auto", {"Score", "Recaption"}),
        ("cpu", "cuda", {"Train", "Spill", "Search"}),
    ],
)
def test_only_steps_that_use_a_gpu_ask_for_one_and_only_where_they_are_told_to(
    score, search, asking
):
    components = graph(score, search).to_runner_api().components
    found = {
        next(part for part in step.unique_name.split("/") if part in GPU_STEPS)
        for step in components.transforms.values()
        if components.environments[step.environment_id].resource_hints
    }
    assert found == asking
