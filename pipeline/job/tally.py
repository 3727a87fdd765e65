"""How far each stage is and how long it will take, added up from what its shards say."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.dataset.progress import ShardState, StepState
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, read_json

SHARD_BY_SHARD = (
    *(Stage.FETCH, Stage.SCORE, Stage.DEDUPLICATE),
    *(Stage.LEVEL, Stage.RECAPTION),
)
"""Stages that make one output of each shard of pairs; the others number their work anew."""

RATE_WINDOW_SECONDS = 120.0
"""How far back the rate looks: far enough that the time left settles."""


@dataclass(slots=True)
class Pace:
    """The rate of a work that goes on in leaps."""

    _history: deque[tuple[float, int]] = field(default_factory=deque)

    def per_second(self, now: float, done: int, *, is_running: bool) -> float | None:
        """Returns the rate of the last while; None until there is one.

        Time in which nothing was at work does not count: the clock starts with the work.
        """
        history = self._history
        if history and not is_running and history[0][1] == done:
            history.clear()
        history.append((now, done))
        while now - history[0][0] > RATE_WINDOW_SECONDS and len(history) > 2:
            history.popleft()
        seconds = now - history[0][0]
        pieces = done - history[0][1]
        return pieces / seconds if seconds > 0.2 and pieces > 0 else None


@dataclass(slots=True)
class StepTally:
    """How far a step of a stage is."""

    state: StepState
    pace: Pace = field(default_factory=Pace)

    @property
    def is_done(self) -> bool:
        """Whether every piece is done."""
        return self.state.done >= self.state.total


@dataclass(slots=True)
class StageTally:
    """A stage's progress, added up over its shards."""

    stage: Stage
    shards: int = 0
    """Shards that the stage will have; 0 if nobody knows yet."""
    shards_done: int = 0
    rows: int = 0
    """Rows that the stage will have, as exactly as the stages before it tell; 0 if unknown."""
    rows_done: int = 0
    shards_seen: int = 0
    is_running: bool = False
    rejected: int = 0
    _pace: Pace = field(default_factory=Pace)

    @property
    def is_done(self) -> bool:
        """Whether all that is known of is done."""
        if self.shards_done < max(self.shards, self.shards_seen, 1):
            return False
        return self.shards > 0 or (0 < self.rows <= self.rows_done)

    def rows_per_second(self, now: float) -> float | None:
        """Returns the rate of the last while; None until there is one."""
        return self._pace.per_second(now, self.rows_done, is_running=self.is_running)

    def count(self, states: Iterable[ShardState], shards: int, rows: int | None = None) -> None:
        """Takes the newest state of each of the stage's shards.

        Args:
            shards: how many there will be, 0 if nobody knows.
            rows: how many there will be; left out, shards not begun count as large as the others.
        """
        self.shards_seen = self.shards_done = self.rows_done = self.rejected = 0
        rows_seen, self.is_running = 0, False
        for state in states:
            self.shards_seen += 1
            self.shards_done += state.state == "done"
            self.is_running |= state.state == "running"
            self.rows_done += state.rows_done
            rows_seen += max(state.total, state.rows_done)
            self.rejected += state.rejected
        self.shards = max(shards, self.shards_seen) if shards else 0
        if rows is None:
            rows = round(rows_seen * self.shards / self.shards_seen) if self.shards_seen else 0
        self.rows = max(rows, rows_seen) if rows else 0


class ShardSizes:
    """How many pairs each shard holds, once they are read."""

    def __init__(self, layout: DatasetLayout) -> None:
        self._layout = layout
        self._known: tuple[int, dict[int, float]] = (0, {})

    def read(self) -> dict[int, float]:
        """Returns the number of pairs by shard; shards alone, of unknown size, where none said."""
        paths = list_files(f"{self._layout.root}/pairs", ".parquet")
        names = [path.rsplit("/", 1)[-1].removesuffix(".parquet") for path in paths]
        shards = sorted(int(name) for name in names if name.isdecimal())
        if len(shards) != self._known[0]:
            sizes = _sizes(f"{self._layout.run}/read.json", shards)
            self._known = (len(shards) if any(sizes.values()) else 0, sizes)
        return self._known[1]


def _sizes(marker: str, shards: Sequence[int]) -> dict[int, float]:
    """Returns the pairs of each shard: all are of the same size but the last."""
    values = read_json(marker) if exists(marker) else {}
    if values.get("shards") != len(shards) or not shards:
        return dict.fromkeys(shards, 0.0)
    kept = values["kept"]
    size = values.get("pairs_per_shard", kept / len(shards))
    return {shard: max(0.0, min(size, kept - place * size)) for place, shard in enumerate(shards)}


def rows_by_stage(
    states: Sequence[ShardState], sizes: dict[int, float]
) -> dict[Stage, dict[int, int]]:
    """Returns for each stage how many rows each shard brings it.

    What a stage keeps of a shard is what the next one gets; of a shard that it has not finished,
    the next one gets what is not rejected yet.
    """
    own = {(state.stage, state.shard): state for state in states}
    rows: dict[Stage, dict[int, int]] = {}
    coming = dict(sizes)
    for stage in SHARD_BY_SHARD:
        rows[stage] = {}
        for shard in coming:
            state = own.get((stage, shard))
            if state is not None:
                coming[shard] = state.total
            rows[stage][shard] = round(coming[shard])
            if state is not None:
                coming[shard] -= state.rejected
    return rows
