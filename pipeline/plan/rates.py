"""What a finished dataset took: of each stage its rows, its bytes and the seconds of its steps."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import pyarrow.parquet as pq

from pipeline.dataset.derivation import is_derived
from pipeline.dataset.manifests import read_manifest
from pipeline.dataset.worktimes import REPORT, StepTime, read_times
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import Manifest
from schemas.shards import DatasetLayout, is_stage_file
from schemas.stages import Stage
from schemas.storage import file_sizes, list_files, open_read

LAST_STEPS = {
    Stage.READ.value: "write",
    Stage.FETCH.value: "fetch",
    Stage.SCORE.value: "score",
    Stage.DEDUPLICATE.value: "keep",
    Stage.LEVEL.value: "assign",
    Stage.RECAPTION.value: "write",
    Stage.PACK.value: "pack",
    REPORT: "report",
}
"""Stage to the step without which nothing is known of what it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRates:
    """What a stage took."""

    stage: str
    rows_in: int
    kept: int
    stored_bytes: int
    """Of the tables and tars that it left, those of what it rejected too."""
    steps: tuple[StepTime, ...]
    fixed_bytes: int = 0
    """Of `stored_bytes`, what is there however many rows there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a curation took, stage by stage, and where it is known from."""

    source: str
    """In words, for people."""
    rows_in: int
    embedding_width: int
    """Numbers in an image embedding; 0 if near-duplicates were not looked for."""
    stages: tuple[StageRates, ...]

    def to_json(self) -> str:
        """Returns the rates as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Rates":
        """Returns the rates that `to_json` wrote."""
        values = json.loads(text)
        stages = []
        for stage in values.pop("stages"):
            steps = tuple(StepTime(**step) for step in stage.pop("steps"))
            stages.append(StageRates(**stage, steps=steps))
        return cls(**values, stages=tuple(stages))


def told_apart(runs: Sequence[Rates]) -> Rates:
    """Returns the rates of the larger of two runs, what is fixed told apart from what grows.

    Only of steps of which each process did one piece: of others, the later pieces tell.

    Raises:
        ConfigError: if the runs are of one size, or not two.
    """
    if len(runs) != 2:
        raise ConfigError(f"--from takes one dataset, or two of sizes apart; got {len(runs)}")
    small, large = sorted(runs, key=lambda run: run.rows_in)
    if small.rows_in == large.rows_in:
        raise ConfigError(f"{small.source} and {large.source} have as many pairs: take one of them")
    before = {(stage.stage, s.step, s.device): s for stage in small.stages for s in stage.steps}
    stages = [
        dataclasses.replace(
            stage,
            steps=tuple(
                _with_start(step, before.get((stage.stage, step.step, step.device)))
                for step in stage.steps
            ),
        )
        for stage in large.stages
    ]
    source = f"{large.source} (what does not grow is known by {small.rows_in:,} pairs)"
    return dataclasses.replace(large, source=source, stages=tuple(stages))


def _with_start(step: StepTime, small: StepTime | None) -> StepTime:
    """Returns a step with what each process takes for it whatever its rows."""
    if small is None or step.rows <= small.rows:
        return step
    if step.pieces != step.processes or small.pieces != small.processes:
        return step
    share = small.rows / (step.rows - small.rows)
    seconds = small.seconds - share * (step.seconds - small.seconds)
    cpu_seconds = small.cpu_seconds - share * (step.cpu_seconds - small.cpu_seconds)
    return dataclasses.replace(
        step,
        first_rows=0,
        first_seconds=min(max(0.0, seconds), step.seconds),
        first_cpu_seconds=min(max(0.0, cpu_seconds), step.cpu_seconds),
    )


def built_in_rates() -> Rates:
    """Returns the rates of the run that comes with the program; `source` says which it is."""
    return Rates.from_json(files("pipeline.plan").joinpath("rates.json").read_text())


def rates_of(root: str, source: str | None = None) -> Rates:
    """Returns what a finished dataset took.

    Args:
        source: in words; by default the folder's name.

    Raises:
        DatasetError: if it is not finished, or was made before times were recorded.
        ConfigError: if it was made from other datasets, so that no stage ran there.
    """
    layout = DatasetLayout(root)
    if is_derived(layout):
        raise ConfigError(
            f"{root} was made from other datasets, by select or merge, so that no stage ran there: "
            "plan from one that was curated"
        )
    manifest = read_manifest(layout)
    stages = [_rates_of_stage(layout, manifest, name) for name in (*manifest.stages, REPORT)]
    _refuse_unknown(layout, stages)
    return Rates(
        source=source or f"{layout.root}, {manifest.rows_in:,} pairs",
        rows_in=manifest.rows_in,
        embedding_width=_embedding_width(layout, stages),
        stages=tuple(stages),
    )


def _rates_of_stage(layout: DatasetLayout, manifest: Manifest, name: str) -> StageRates:
    steps = tuple(read_times(layout, name))
    if name == REPORT:
        # The page shows as many examples whatever the size, but the manifest has all shards.
        stored = file_sizes(layout.root)[layout.manifest]
        without_shards = dataclasses.replace(manifest, shards=[]).to_json()
        return StageRates(
            stage=name,
            rows_in=manifest.rows_in,
            kept=manifest.kept,
            stored_bytes=stored,
            steps=steps,
            fixed_bytes=min(stored, len(without_shards.encode())),
        )
    stage, counts = Stage(name), manifest.stages[name]
    folders = (layout.folder(stage), layout.rejected_folder(stage))
    return StageRates(
        stage=name,
        rows_in=counts.rows_in,
        kept=counts.kept,
        stored_bytes=sum(_bytes_of(file_sizes(folder).items()) for folder in folders),
        steps=steps,
    )


def _bytes_of(sizes: Iterable[tuple[str, int]]) -> int:
    return sum(size for path, size in sizes if is_stage_file(path))


def _refuse_unknown(layout: DatasetLayout, stages: list[StageRates]) -> None:
    """Raises `DatasetError` if a dataset does not say what its work took."""
    unknown = [
        one.stage
        for one in stages
        if one.rows_in and not any(step.step == LAST_STEPS[one.stage] for step in one.steps)
    ]
    if unknown:
        raise DatasetError(
            f"{layout.root} does not say how long {', '.join(unknown)} took: it was made by a "
            "version that did not record it, or its _run/times is gone. Curate some thousand of "
            "the pairs into a new folder with this version and plan from that, or leave --from out"
        )


def _embedding_width(layout: DatasetLayout, stages: list[StageRates]) -> int:
    if not any(step.step == "near" for stage in stages for step in stage.steps):
        return 0
    for path in list_files(layout.folder(Stage.SCORE), ".parquet"):
        with open_read(path) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(1, columns=["image_embedding"]):
                embedding = batch["image_embedding"][0]
                return len(embedding) if embedding.is_valid else 0
    return 0
