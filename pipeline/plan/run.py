"""Plan: what a curation of another size takes, as a table in the terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from pipeline.dataset.worktimes import StepTime
from pipeline.plan.forecast import (
    ASSUMED_GPU_PAIRS_PER_SECOND,
    Resources,
    StageForecast,
    forecast,
)
from pipeline.plan.rates import Rates, built_in_rates, rates_of, told_apart
from schemas.command_line import counted
from schemas.errors import ConfigError
from schemas.stages import Stage
from schemas.terminal import Console

FAR = 1000
"""Times as many pairs as the run had from which on a plan is said to be far from it."""

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")


def print_plan(
    roots: Sequence[str],
    pairs: int,
    resources: Resources,
    price_terabyte_month: float,
    console: Console,
) -> None:
    """Prints what so many pairs take, and what that is reckoned from.

    Args:
        roots: of a finished dataset, or of two of sizes apart; none for the run that comes with
            the program.

    Raises:
        ConfigError: if the pairs are fewer than can be planned from, or GPUs are needed.
        DatasetError: if the dataset does not say what its work took.
    """
    runs = [rates_of(root) for root in roots] or [built_in_rates()]
    rates = runs[0] if len(runs) == 1 else told_apart(runs)
    if not rates.rows_in:
        raise ConfigError(f"{rates.source} had no rows: nothing can be reckoned from it")
    stages = forecast(rates, pairs, resources)
    console.print(plan_table(pairs, resources, stages))
    stored = sum(stage.stored_bytes for stage in stages)
    month = stored / 1e12 * price_terabyte_month
    console.print(
        f"Kept all together, {format_bytes(stored)} cost {format_dollars(month)} a month.",
        highlight=False,
    )
    for note in notes(rates, pairs, resources, stages):
        console.print(note, highlight=False, markup=False)
    console.print(rates_table(rates))


def plan_table(pairs: int, resources: Resources, stages: Sequence[StageForecast]) -> Table:
    """Returns what each stage takes, and all of them."""
    with_gpus = f", {counted(resources.gpus, 'GPU')}" if resources.gpus else ""
    title = f"{counted(pairs, 'pair')}, {counted(resources.workers, 'worker')}{with_gpus}"
    table = _table(title, show_footer=True)
    table.add_column("stage", footer="all", no_wrap=True)
    columns = (
        ("rows in", ""),
        ("takes", format_length(sum(one.seconds for one in stages))),
        ("worker h", format_hours(sum(one.worker_seconds for one in stages))),
        ("GPU h", format_hours(sum(one.gpu_seconds for one in stages))),
        ("stored", format_bytes(sum(one.stored_bytes for one in stages))),
        ("passing", format_bytes(sum(one.passing_bytes for one in stages))),
        ("dollars", format_dollars(sum(one.dollars for one in stages))),
    )
    for name, footer in columns:
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for one in stages:
        table.add_row(
            one.stage,
            format_count(one.rows_in),
            format_length(one.seconds),
            format_hours(one.worker_seconds),
            format_hours(one.gpu_seconds),
            format_bytes(one.stored_bytes),
            format_bytes(one.passing_bytes),
            format_dollars(one.dollars),
        )
    return table


def _table(title: str, *, show_footer: bool = False) -> Table:
    """Returns an empty table that leaves room for nine columns in 80."""
    return Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        show_footer=show_footer,
    )


def notes(
    rates: Rates, pairs: int, resources: Resources, stages: Sequence[StageForecast]
) -> Iterator[str]:
    """Yields what a person must know to judge a plan."""
    yield f"Reckoned from {rates.source}; below is what its work took."
    yield (
        "A worker, its cores and its network are taken to be as there, and so is the share of the "
        "pairs that each stage keeps. Starting processes and loading models are left out."
    )
    yield (
        "Dollars are of all workers for as long as a stage on workers takes, and of all GPUs for "
        "as long as one on GPUs does: "
        f"{resources.price_worker_hour:g} for a worker's hour, {resources.price_gpu_hour:g} for a "
        "GPU's. Both are examples unless you gave them."
    )
    scored = [step for stage in rates.stages if stage.stage == Stage.SCORE for step in stage.steps]
    is_cuda = any(step.device == "cuda" for step in scored)
    if scored and resources.gpus and not is_cuda and resources.gpu_pairs_per_second is None:
        yield (
            f"The run scored on CPUs: {ASSUMED_GPU_PAIRS_PER_SECOND:,.0f} pairs a second for each "
            "GPU are assumed (ViT-L/14 at 400 TFLOP/s), not measured; give your own by "
            "--gpu-pairs-per-second, as benchmarks/score.py --device cuda prints it."
        )
    fetched = next((one for one in stages if one.stage == Stage.FETCH), None)
    if fetched is not None and fetched.passing_bytes and fetched.seconds:
        bits = 8 * fetched.passing_bytes / fetched.seconds
        yield f"Fetching so fast downloads {bits / 1e9:,.2f} Gbit a second all together."
    if pairs > FAR * rates.rows_in:
        yield (
            f"That is {pairs / rates.rows_in:,.0f} times the run: what is small there and grows, "
            "above all the search for near-duplicates, is known to a factor of a few. Plan again "
            "from a run of a thousandth of the pairs."
        )


def rates_table(rates: Rates) -> Table:
    """Returns what the stages of the run took for each row."""
    table = _table("What the work took there")
    table.add_column("stage")
    for name in ("rows in", "seconds", "rows a second", "cores busy", "stored a row"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in rates.stages:
        seconds = sum(step.seconds for step in stage.steps)
        cores = sum(step.cpu_seconds for step in stage.steps)
        table.add_row(
            stage.stage + (" (GPU)" if _is_on_gpu(stage.steps) else ""),
            f"{stage.rows_in:,}",
            f"{seconds:,.2f}",
            f"{stage.rows_in / seconds:,.0f}" if seconds else "-",
            f"{cores / seconds:.1f}" if seconds else "-",
            format_bytes(stage.stored_bytes / stage.rows_in) if stage.rows_in else "-",
        )
    return table


def _is_on_gpu(steps: Sequence[StepTime]) -> bool:
    return any(step.device == "cuda" for step in steps)


def format_count(count: int) -> str:
    """Returns a number with three digits that count, where it has more than six."""
    for unit, size in (("bn", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:,.{max(0, 2 - len(str(int(count / size))) + 1)}f} {unit}"
    return f"{count:,}"


def format_length(seconds: float) -> str:
    """Returns a length of time in one unit: `47 s`, `34 min`, `33.6 h`, `3.5 days`."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if round(seconds / size) < most:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86_400:,.1f} days"


def format_hours(seconds: float) -> str:
    """Returns hours, to a hundredth where they are few; nothing for none."""
    hours = seconds / 3600
    if not hours:
        return ""
    return f"{hours:,.{0 if hours >= 100 else 1 if hours >= 10 else 2}f}"


def format_bytes(count: float) -> str:
    """Returns a number of bytes with its unit; nothing for none."""
    place = 0
    while round(count, 1) >= 1000 and place < len(UNITS) - 1:
        count, place = count / 1000, place + 1
    if not count:
        return ""
    return f"{count:.0f} bytes" if place == 0 else f"{count:.1f} {UNITS[place]}"


def format_dollars(dollars: float) -> str:
    """Returns dollars, with cents where they are few."""
    return f"{dollars:,.0f}" if dollars >= 100 else f"{dollars:.2f}"
