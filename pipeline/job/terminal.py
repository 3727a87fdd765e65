"""What the person at the terminal sees while the job runs, and when it is done."""

import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.dataset.progress import ProgressReader, ShardState, StepState
from pipeline.job.tally import SHARD_BY_SHARD, ShardSizes, StageTally, StepTally, rows_by_stage
from schemas.command_line import format_seconds
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console

__all__ = ["ProgressDisplay", "StageTally", "summary_table"]

PLAIN_PAUSE_SECONDS = 10.0
"""Between two lines of a stage where the output is no terminal."""

SILENCE_SECONDS = 25.0
"""After which a line says that the job is alive, even if there is no news."""


class ProgressDisplay:
    """Shows every stage's pairs, rate, rejections and time left, for the length of a block.

    On a terminal it is a table that keeps itself up to date, elsewhere a line now and then.
    """

    def __init__(self, layout: DatasetLayout, stages: Sequence[Stage], console: Console) -> None:
        self._layout = layout
        self._reader = ProgressReader(layout)
        self._sizes = ShardSizes(layout)
        self._tallies = {stage: StageTally(stage) for stage in stages}
        self._steps: dict[tuple[Stage, str], StepTally] = {}
        self._console = console
        self._live: Live | None = None
        self._printed: dict[object, tuple[float, int]] = {}
        self._printed_at = self._began_at = time.monotonic()
        self._not_before = 0.0

    def __enter__(self) -> "ProgressDisplay":
        """Opens the display."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shows where the job ended."""
        self._not_before = 0.0
        self.refresh()
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> list[ShardState]:
        """Reads and shows the progress; returns what was read, [] if it was read just before.

        Reading takes at most a twentieth of the time, however many shards there are.
        """
        started = time.monotonic()
        if started < self._not_before:
            return []
        states = self._reader.read()
        steps = self._reader.read_steps()
        self._count(states, steps)
        self._show()
        seconds = time.monotonic() - started
        self._not_before = time.monotonic() + max(0.5, 20 * seconds)
        return states

    def _count(self, states: Sequence[ShardState], steps: Sequence[StepState]) -> None:
        announced = {step.stage: step.total for step in steps if not step.step}
        sizes = self._sizes.read()
        rows = rows_by_stage(states, sizes)
        for stage, tally in self._tallies.items():
            own = [state for state in states if state.stage is stage]
            if stage not in SHARD_BY_SHARD:
                tally.count(own, 0, announced.get(stage, 0))
            elif any(sizes.values()):
                tally.count(own, len(sizes), sum(rows[stage].values()))
            else:
                tally.count(own, max(len(sizes), len(own)))
        for step in steps:
            if step.step and step.stage in self._tallies:
                self._steps.setdefault((step.stage, step.step), StepTally(step)).state = step

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            table = progress_table(self._tallies.values(), self._steps.values(), now)
            self._live.update(table, refresh=True)
            return
        for step in self._steps.values():
            self._print(step, step.state.done, step.is_done, progress_step(step, now), now)
        for tally in self._tallies.values():
            if tally.shards_seen:
                self._print(tally, tally.rows_done, tally.is_done, progress_line(tally, now), now)
        if now - self._printed_at >= SILENCE_SECONDS:
            self._printed_at = now
            self._console.print(self._sign_of_life(now), highlight=False)

    def _print(self, what: object, done: int, is_done: bool, line: str, now: float) -> None:
        """Prints a line if it has news and none was printed of the same just before."""
        printed_at, printed = self._printed.get(id(what), (-1e9, -1))
        if done != printed and (is_done or now - printed_at >= PLAIN_PAUSE_SECONDS):
            self._printed[id(what)] = (now, done)
            self._printed_at = now
            self._console.print(line, highlight=False)

    def _sign_of_life(self, now: float) -> str:
        """Returns a line for when there was no news for a while."""
        working = [tally for tally in self._tallies.values() if tally.is_running]
        if working:
            return progress_line(working[0], now)
        tallies = list(self._tallies.values())
        # Nobody may know how many rows are read: what came after shows that they are.
        last_seen = max((at for at, tally in enumerate(tallies) if tally.shards_seen), default=0)
        left = [tally.stage.value for tally in tallies[last_seen:] if not tally.is_done]
        doing = f"{left[0]}: getting ready" if left else "finishing"
        return f"{doing}, {format_seconds(now - self._began_at)} since the start"


def progress_table(tallies: Iterable[StageTally], steps: Iterable[StepTally], now: float) -> Table:
    """Returns the stages' progress as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", style="bold")
    table.add_column("", width=24)
    for name in ("shards", "pairs", "rejected", "pairs/s", "time left"):
        table.add_column(name, justify="right")
    under_way = [step for step in steps if not step.is_done]
    for tally in tallies:
        rate = tally.rows_per_second(now)
        table.add_row(
            tally.stage.value,
            ProgressBar(total=max(tally.rows, 1), completed=tally.rows_done, width=24),
            f"{tally.shards_done}/{tally.shards}" if tally.shards else "-",
            f"{tally.rows_done:,}",
            f"{tally.rejected:,}",
            f"{rate:,.0f}" if rate and not tally.is_done else "",
            _time_left(tally, rate),
        )
        for step in (step for step in under_way if step.state.stage is tally.stage):
            done, total = step.state.done, step.state.total
            bar = ProgressBar(total=max(total, 1), completed=done, width=24)
            table.add_row(f"  {step.state.step}", bar, f"{done}/{total}")
    return table


def progress_line(tally: StageTally, now: float) -> str:
    """Returns a stage's progress as one line."""
    rate = tally.rows_per_second(now)
    of = f" of {tally.rows:,}" if tally.rows else ""
    shards = f" of {tally.shards}" if tally.shards else ""
    parts = [
        f"{tally.stage.value}: {tally.rows_done:,}{of} pairs",
        f"{tally.shards_done}{shards} shards done",
        f"{tally.rejected:,} rejected",
    ]
    if rate and not tally.is_done:
        parts += [f"{rate:,.0f} pairs/s"]
        parts += [f"{_time_left(tally, rate)} left"] if tally.rows else []
    return ", ".join(parts)


def progress_step(tally: StepTally, now: float) -> str:
    """Returns the progress of a step of a stage as one line."""
    state = tally.state
    line = f"{state.stage.value}: {state.step}, {state.done} of {state.total} done"
    rate = tally.pace.per_second(now, state.done, is_running=True)
    if not rate or tally.is_done:
        return line
    return f"{line}, {format_seconds((state.total - state.done) / rate)} left"


def _time_left(tally: StageTally, rate: float | None) -> str:
    if tally.is_done:
        return "done"
    if not rate or not tally.rows:
        return ""
    return format_seconds((tally.rows - tally.rows_done) / rate)


def summary_table(stages: Mapping[str, StageCounts]) -> Table:
    """Returns the balance of every stage: rows in, kept, and rejected by reason."""
    table = Table(title="Every row in is kept or rejected", title_justify="left")
    table.add_column("stage", style="bold")
    table.add_column("rows in", justify="right")
    table.add_column("kept", justify="right", style="green")
    table.add_column("rejected", justify="right", style="red")
    table.add_column("reasons")
    for stage, counts in stages.items():
        reasons = sorted(counts.rejected.items(), key=lambda item: (-item[1], item[0]))
        table.add_row(
            stage,
            f"{counts.rows_in:,}",
            f"{counts.kept:,}",
            f"{sum(counts.rejected.values()):,}",
            ", ".join(f"{reason} {count:,}" for reason, count in reasons),
        )
    return table


def scoring_pace(states: Iterable[ShardState]) -> str | None:
    """Returns how fast pictures were ready and how fast the model was, and which one waited.

    None if nothing was scored.
    """
    scored = [state for state in states if state.stage is Stage.SCORE and state.seconds]
    pairs = sum(state.rows_done for state in scored)
    feed, model = (sum(state.seconds[name] for state in scored) for name in ("feed", "model"))
    if not pairs or not feed or not model:
        return None
    cause, remedy = "the model limits", ""
    if feed > model:
        cause = "the model waits for pictures"
        remedy = ": give it more cores (score.decode_threads), or more workers"
    return (
        f"score: pictures ready at {pairs / feed:,.0f} pairs/s, the model takes "
        f"{pairs / model:,.0f} pairs/s in each worker: {cause}{remedy}"
    )
