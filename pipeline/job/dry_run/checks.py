"""What can be told from a graph before it runs: who asks for a GPU, and whether it is too large."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, WorkerOptions
from apache_beam.portability.common_urns import primitives, resource_hints

from pipeline.config import CurationConfig
from pipeline.curate import name_of
from pipeline.job.dry_run.graph import has_dataflow
from pipeline.job.runners import DATAFLOW, LOCAL, RAY, UNSHARED_HOSTS
from schemas.stages import Stage

DATAFLOW_BYTES = 20 * 10**6
"""Largest graph that Dataflow takes. Source: Dataflow's quotas, "JSON job request"."""

ACCELERATOR = resource_hints.ACCELERATOR.urn

PROTO_BYTES = 2**31 - 1
"""Largest message of protocol buffers, in which every other runner is given the graph."""

HINTING = {
    Stage.SCORE: "score",
    Stage.DEDUPLICATE: "deduplicate",
    Stage.RECAPTION: "score",
}
"""Stages whose steps may ask for a GPU, and the section of the configuration that says so."""


@dataclass(slots=True)
class StageGraph:
    """What a graph holds of a stage."""

    steps: int = 0
    shuffles: int = 0
    payload_bytes: int = 0
    hints: dict[str, set[str]] = field(default_factory=dict)
    """Hint to the last names of the steps that carry it."""
    accelerators: set[str] = field(default_factory=set)
    """Those of the hints that ask for a GPU."""


def stage_graphs(proto: Any) -> dict[str, StageGraph]:
    """Returns what a graph holds, by the first part of its steps' names, in the graph's order."""
    components = proto.components
    found: dict[str, StageGraph] = {}
    for step in _in_order(proto):
        if step.subtransforms:
            continue
        parts = step.unique_name.split("/")
        stage = found.setdefault(parts[0], StageGraph())
        stage.steps += 1
        stage.shuffles += step.spec.urn == primitives.GROUP_BY_KEY.urn
        stage.payload_bytes += len(step.spec.payload)
        if step.environment_id:
            hints = components.environments[step.environment_id].resource_hints
            for urn, value in sorted(hints.items()):
                hint = _shown(urn, value.decode())
                stage.hints.setdefault(hint, set()).add("/".join(parts[1:]))
                stage.accelerators |= {hint} if urn == ACCELERATOR else set()
    return found


def _in_order(proto: Any) -> Iterator[Any]:
    """Yields the steps, each before what it is made of, in the order in which they were added."""
    transforms = proto.components.transforms
    waiting = list(reversed(proto.root_transform_ids))
    while waiting:
        step = transforms[waiting.pop()]
        if step.unique_name:
            yield step
        waiting += reversed(step.subtransforms)


def _shown(urn: str, value: str) -> str:
    """Returns a hint as it is typed, as min_ram_bytes=4000000000; that for a GPU says so itself."""
    return value if urn == ACCELERATOR else f"{urn.split(':')[-2]}={value}"


def hint_faults(graphs: dict[str, StageGraph], config: CurationConfig) -> list[str]:
    """Returns which stages ask for a GPU and should not, or should and do not."""
    may = {name_of(stage) for stage in HINTING}
    asking = {name: graph for name, graph in graphs.items() if graph.accelerators}
    wrong = {name: graph for name, graph in asking.items() if name not in may}
    faults = []
    if wrong:
        gpus = sorted(set().union(*(graph.accelerators for graph in wrong.values())))
        faults.append(
            f"{', '.join(wrong)} ask for {', '.join(gpus)}, which only scoring and the search for "
            "duplicates are to: leave out Beam's --resource_hint, and say --score.device cuda or "
            "--deduplicate.device cuda"
        )
    for stage, section in HINTING.items():
        graph = graphs.get(name_of(stage))
        if graph and getattr(config, section).device == "cuda" and not graph.accelerators:
            faults.append(
                f"{section}.device is cuda, but no step of it asks for a GPU: name one by "
                f"--{section}.accelerator"
            )
    return faults


def size_faults(proto: Any, runner: str) -> list[str]:
    """Returns what is said of a graph that its runner would not take for its size."""
    size, limit = proto.ByteSize(), DATAFLOW_BYTES if runner == DATAFLOW else PROTO_BYTES
    if size <= limit:
        return []
    largest = max(stage_graphs(proto).items(), key=lambda item: item[1].payload_bytes)
    return [
        f"the graph has {size:,} bytes, {runner} takes {limit:,} at most; most of it in "
        f"{largest[0]} ({largest[1].payload_bytes:,}). Names of many input files or shards make it "
        "large: give fewer, larger files, more --read.pairs-per-shard, or run `read` by itself"
    ]


def dataflow_faults(options: PipelineOptions) -> list[str]:
    """Returns what Dataflow needs beyond what Beam asks for."""
    cloud, faults = options.view_as(GoogleCloudOptions), []
    wanted = {
        "project": "the project that pays",
        "region": "where the workers are, such as europe-west4",
        "temp_location": "a folder for files in between, such as gs://BUCKET/tmp",
    }
    for name, what in wanted.items():
        if not getattr(cloud, name):
            faults.append(f"--{name} is missing after --: {what}")
    for name in ("temp_location", "staging_location"):
        value = getattr(cloud, name)
        if value and not value.startswith("gs://"):
            faults.append(f"--{name} {value} must be a folder in a bucket, as gs://BUCKET/tmp")
    if not options.view_as(WorkerOptions).sdk_container_image:
        faults.append(
            "--sdk_container_image is missing after --: Beam's own image has no aligngpt. Build "
            "one by `make image`, push it and name it"
        )
    return faults


def notes_of(runner: str, config: CurationConfig, stages: Sequence[Stage]) -> list[str]:
    """Returns what is good to know and no fault."""
    notes = []
    if runner == DATAFLOW and not has_dataflow():
        notes.append(
            "apache-beam[gcp] is not installed here, so the graph was translated without "
            "Dataflow's last steps; to submit from here: pip install 'aligngpt[curate,gcp]'"
        )
    if runner == DATAFLOW and Stage.SCORE in stages and config.score.device == "auto":
        notes.append("score.device is auto: no step asks for a GPU, so that workers have none")
    if Stage.FETCH in stages and runner not in (LOCAL, RAY) and not config.fetch.sharing_workers:
        notes.append(UNSHARED_HOSTS)
    return notes
