"""What the person at the terminal sees while the job runs, and when it is done."""

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline.dataset.progress import ProgressReader, ShardState
from schemas.command_line import format_seconds
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import list_files
from schemas.terminal import Console

PLAIN_PAUSE_SECONDS = 10.0
"""Between two lines of a stage where the output is no terminal."""

SHARD_BY_SHARD = (Stage.FETCH, Stage.SCORE, Stage.DEDUPLICATE, Stage.LEVEL)
"""Stages that make one output of each shard of pairs; the others number their work anew."""

RATE_WINDOW_SECONDS = 30.0
"""How far back the rate looks."""


@dataclass(slots=True)
class StageTally:
    """A stage's progress, added up over its shards."""

    stage: Stage
    shards: int = 0
    """Shards that the stage will have, as far as known."""
    shards_done: int = 0
    rows_done: int = 0
    rows_seen: int = 0
    """Rows of the shards that have begun."""
    shards_seen: int = 0
    rejected: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def rows(self) -> int:
        """Rows that the stage will have; shards not begun count as large as the others."""
        if self.shards_seen == 0:
            return 0
        return round(self.rows_seen * max(self.shards, self.shards_seen) / self.shards_seen)

    @property
    def is_done(self) -> bool:
        """Whether every known shard is done."""
        return 0 < self.shards <= self.shards_done

    def rows_per_second(self, now: float) -> float | None:
        """Returns the rate of the last while; None until there is one."""
        self._history.append((now, self.rows_done))
        while now - self._history[0][0] > RATE_WINDOW_SECONDS and len(self._history) > 2:
            self._history.popleft()
        seconds = now - self._history[0][0]
        rows = self.rows_done - self._history[0][1]
        return rows / seconds if seconds > 0.2 and rows > 0 else None

    def count(self, states: Iterable[ShardState], shards: int) -> None:
        """Takes the newest state of each of the stage's shards."""
        self.shards_seen = self.shards_done = self.rows_done = self.rows_seen = self.rejected = 0
        for state in states:
            self.shards_seen += 1
            self.shards_done += state.state == "done"
            self.rows_done += state.rows_done
            self.rows_seen += max(state.total, state.rows_done)
            self.rejected += state.rejected
        self.shards = max(shards, self.shards_seen)


class ProgressDisplay:
    """Shows every stage's pairs, rate, rejections and time left, for the length of a block.

    On a terminal it is a table that keeps itself up to date, elsewhere a line now and then.
    """

    def __init__(self, layout: DatasetLayout, stages: Sequence[Stage], console: Console) -> None:
        self._layout = layout
        self._reader = ProgressReader(layout)
        self._tallies = {stage: StageTally(stage) for stage in stages}
        self._console = console
        self._live: Live | None = None
        self._printed: dict[Stage, tuple[float, int]] = {}
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
        shards = len(list_files(self._layout.folder(Stage.READ), ".parquet"))
        for stage, tally in self._tallies.items():
            own = [state for state in states if state.stage is stage]
            tally.count(own, shards if stage in SHARD_BY_SHARD else 0)
        self._show()
        seconds = time.monotonic() - started
        self._not_before = time.monotonic() + max(0.5, 20 * seconds)
        return states

    def _show(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            self._live.update(progress_table(self._tallies.values(), now), refresh=True)
            return
        for stage, tally in self._tallies.items():
            printed_at, rows = self._printed.get(stage, (-1e9, -1))
            has_news = tally.rows_done != rows and tally.shards_seen > 0
            is_due = now - printed_at >= PLAIN_PAUSE_SECONDS or tally.is_done
            if has_news and is_due:
                self._printed[stage] = (now, tally.rows_done)
                self._console.print(progress_line(tally, now), highlight=False)


def progress_table(tallies: Iterable[StageTally], now: float) -> Table:
    """Returns the stages' progress as a table."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", style="bold")
    table.add_column("", width=24)
    for name in ("shards", "pairs", "rejected", "pairs/s", "time left"):
        table.add_column(name, justify="right")
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
    return table


def progress_line(tally: StageTally, now: float) -> str:
    """Returns a stage's progress as one line."""
    rate = tally.rows_per_second(now)
    parts = [
        f"{tally.stage.value}: {tally.rows_done:,} of {tally.rows:,} pairs",
        f"{tally.shards_done} of {tally.shards} shards done",
        f"{tally.rejected:,} rejected",
    ]
    if rate and not tally.is_done:
        parts += [f"{rate:,.0f} pairs/s", f"{_time_left(tally, rate)} left"]
    return ", ".join(parts)


def _time_left(tally: StageTally, rate: float | None) -> str:
    if tally.is_done:
        return "done"
    if not rate:
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
