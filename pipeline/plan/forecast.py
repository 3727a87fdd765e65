"""What so many pairs take on so many workers and GPUs, by what one curation took.

A step that works row by row takes seconds in proportion to its rows. The search for near-duplicates
grows faster: cells and what a cell holds both grow with the square root of the rows, so that its
products grow with the power of 1.5. Steps that one worker does alone keep all others waiting. With
its first piece of a step, each process also takes what it takes to load and warm up; where pieces
overlap, the run says what starting took by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.dataset.worktimes import CONTROLLED_SHARDS, REPORT, StepTime
from pipeline.plan.rates import Rates, StageRates
from schemas.errors import ConfigError
from schemas.stages import Stage

ALONE = frozenset({(Stage.DEDUPLICATE, "train"), (Stage.DEDUPLICATE, "join"), (Stage.PACK, "plan")})
"""Steps that one worker does while the others wait, beside the report."""

FIXED = frozenset({(REPORT, "render")})
"""Steps that take the same however many pairs there are."""

AT_MOST = {(REPORT, step): CONTROLLED_SHARDS for step in ("control", "signals")}
"""Steps that look at so many shards at most."""

OF_SOME = frozenset({(Stage.FETCH, "retry")})
"""Steps of some rows of a stage alone, as many of them as in the run."""

SEARCH_SECONDS = 6.4e-8
"""Of a core, for a row to the power of 1.5 with 512 numbers. Source: docs/deduplication.md, out of
memory: 179.7 s for a million and 974.0 s for four million rows are a * n + b * n**1.5."""

SEARCH_WIDTH = 512
ONE_CELL_ROWS = 1000
"""Rows up to which all are one cell. Source: `scoring.duplicates.cells.cell_count`."""
VISITS = 4.75
"""Cells that a row is put in where there are several. Source: docs/deduplication.md, "Choosing"."""

ASSUMED_GPU_PAIRS_PER_SECOND = 400e12 / 175e9
"""Of ViT-L/14, whose pairs take 175 GFLOP, at 400 TFLOP/s: arithmetic, not measured. Source:
docs/scale.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What there is to work with, and what it costs."""

    workers: int
    gpus: int
    gpu_pairs_per_second: float | None
    """That one GPU scores; None takes it from the run, or assumes it if that had no GPU."""
    price_worker_hour: float
    price_gpu_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """What a stage is going to take."""

    stage: str
    rows_in: int
    kept: int
    seconds: float
    """From its beginning to its end."""
    worker_seconds: float
    """Of work, without waiting."""
    cpu_seconds: float
    """Of all cores of the workers."""
    gpu_seconds: float
    stored_bytes: float
    passing_bytes: float
    """Downloaded by fetch; temporary files of deduplicate."""
    dollars: float


def forecast(rates: Rates, pairs: int, resources: Resources) -> list[StageForecast]:
    """Returns what each stage takes, in their order.

    The share that each stage keeps is taken to be that of the run.

    Raises:
        ConfigError: if the run used GPUs for a step and there are to be none.
    """
    found = []
    for stage in rates.stages:
        of_input = stage.rows_in / rates.rows_in if rates.rows_in else 0.0
        found.append(_of_stage(stage, rates, pairs * of_input, resources))
    return found


def _of_stage(stage: StageRates, rates: Rates, rows: float, resources: Resources) -> StageForecast:
    growth = rows / stage.rows_in if stage.rows_in else 0.0
    steps = [_of_step(stage, step, rates, growth, resources) for step in _steps(stage, resources)]
    on_gpus = sum(step.seconds for step in steps if step.device == "cuda")
    on_workers = sum(step.seconds for step in steps if step.device == "cpu")
    dollars = on_gpus * resources.gpus * resources.price_gpu_hour
    dollars += on_workers * resources.workers * resources.price_worker_hour
    passing = sum(step.bytes for step in stage.steps) * growth
    if stage.stage == Stage.DEDUPLICATE and stage.rows_in <= ONE_CELL_ROWS < rows:
        passing *= VISITS
    return StageForecast(
        stage=stage.stage,
        rows_in=round(rows),
        kept=round(stage.kept * growth),
        seconds=on_gpus + on_workers,
        worker_seconds=sum(step.work_seconds for step in steps if step.device == "cpu"),
        cpu_seconds=sum(step.cpu_seconds for step in steps),
        gpu_seconds=sum(step.work_seconds for step in steps if step.device == "cuda"),
        stored_bytes=stage.fixed_bytes + (stage.stored_bytes - stage.fixed_bytes) * growth,
        passing_bytes=passing,
        dollars=dollars / 3600,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _StepForecast:
    device: str
    seconds: float
    work_seconds: float
    cpu_seconds: float


def _steps(stage: StageRates, resources: Resources) -> Sequence[StepTime]:
    """Returns the steps of a stage; scores come from GPUs wherever there are any."""
    rate, rows = resources.gpu_pairs_per_second, stage.rows_in
    scored = [step for step in stage.steps if (stage.stage, step.step) == (Stage.SCORE, "score")]
    if not resources.gpus or not scored:
        return stage.steps
    if rate is None and any(step.device == "cuda" for step in scored):
        return stage.steps
    pieces = sum(step.pieces for step in scored)
    seconds = rows / (rate or ASSUMED_GPU_PAIRS_PER_SECOND)
    on_gpu = StepTime(step="score", device="cuda", pieces=pieces, rows=rows, seconds=seconds)
    return [on_gpu, *(step for step in stage.steps if step.step != "score")]


def _of_step(
    stage: StageRates, step: StepTime, rates: Rates, growth: float, resources: Resources
) -> _StepForecast:
    """Returns what a step takes if the stage has `growth` times as many rows as in the run.

    Raises:
        ConfigError: if it was done by a GPU and there are none.
    """
    if step.device == "cuda" and not resources.gpus:
        raise ConfigError(
            f"{rates.source} used GPUs for {stage.stage}: say how many there are to be by --gpus"
        )
    rows_told = sum(one.rows for one in stage.steps if one.step == step.step)
    # A job that goes on elsewhere does a step by devices of two kinds. And all rows count, though
    # a kill may have lost what a piece of them took.
    rows = stage.rows_in * growth * step.rows / rows_told if rows_told else 0.0
    if (stage.stage, step.step) in FIXED:
        rows = step.rows
    if (stage.stage, step.step) in OF_SOME:
        rows = step.rows * growth
    most = AT_MOST.get((stage.stage, step.step))
    if most is not None and step.pieces:
        rows = min(rows, max(step.rows, step.rows * most / step.pieces))
    pace = _Pace.of(step)
    work = pace.seconds * rows
    if (stage.stage, step.step) == (Stage.DEDUPLICATE, "near"):
        work += _search_growth(stage, pace.seconds, rates.embedding_width, growth)
    count = resources.gpus if step.device == "cuda" else resources.workers
    pieces = max(1, math.ceil(step.pieces * rows / step.rows - 1e-6)) if step.rows else 1
    rounds = math.ceil(pieces / count)
    is_alone = stage.stage == REPORT or (stage.stage, step.step) in ALONE
    starts = min(count, pieces)
    return _StepForecast(
        device=step.device,
        seconds=pace.start_seconds + (work if is_alone else work * rounds / pieces),
        work_seconds=work + pace.start_seconds * starts,
        cpu_seconds=work * pace.cores + pace.start_cpu_seconds * starts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """What a row of a step takes, and what a process takes once, with its first piece."""

    seconds: float
    cores: float
    """That are at work."""
    start_seconds: float = 0.0
    start_cpu_seconds: float = 0.0

    @classmethod
    def of(cls, step: StepTime) -> "_Pace":
        """Returns the pace of a step: of the pieces after the first, where there are any.

        Where the first are of no rows, what they took is known to be fixed: the run itself told
        what starting took, or another run did. Where the run told the pace of the rows in the
        middle, what all took beyond that is fixed.
        """
        if step.flow_rows and step.processes:
            return cls._of_flow(step)
        rows = step.rows - step.first_rows
        if not step.processes or rows <= 0:
            seconds = step.seconds / step.rows if step.rows else 0.0
            return cls(seconds=seconds, cores=_ratio(step.cpu_seconds, step.seconds))
        seconds = max(0.0, step.seconds - step.first_seconds)
        cpu_seconds = max(0.0, step.cpu_seconds - step.first_cpu_seconds)
        share = step.first_rows / rows
        return cls(
            seconds=seconds / rows,
            cores=_ratio(cpu_seconds, seconds),
            start_seconds=max(0.0, step.first_seconds - seconds * share) / step.processes,
            start_cpu_seconds=max(0.0, step.first_cpu_seconds - cpu_seconds * share)
            / step.processes,
        )

    @classmethod
    def _of_flow(cls, step: StepTime) -> "_Pace":
        seconds = step.flow_seconds / step.flow_rows
        cpu_seconds = step.flow_cpu_seconds / step.flow_rows
        return cls(
            seconds=seconds,
            cores=_ratio(cpu_seconds, seconds),
            start_seconds=max(0.0, step.seconds - seconds * step.rows) / step.processes,
            start_cpu_seconds=max(0.0, step.cpu_seconds - cpu_seconds * step.rows) / step.processes,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _search_growth(stage: StageRates, seconds: float, width: int, growth: float) -> float:
    """Returns what the search takes beyond `growth` times what it took.

    Args:
        seconds: that it took for each row.
    """
    if not stage.rows_in:
        return 0.0
    rows = stage.rows_in * growth
    root, root_before = math.sqrt(rows), math.sqrt(stage.rows_in)
    factor = min(SEARCH_SECONDS * width / SEARCH_WIDTH, seconds / root_before)
    return factor * rows * (root - root_before)
