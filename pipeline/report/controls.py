"""All controls of a dataset: of its score, of each signal, and of what decides its levels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.report.contents import LevelContents
from pipeline.report.control import Control, is_cut, read_control, summary
from pipeline.report.pair_groups import SCORE
from pipeline.report.signal_controls import SignalControl, signal_controls, with_controls
from pipeline.report.signal_pairs import read_signal_pairs
from schemas.manifest import ScoreControl, SignalSummary
from schemas.shards import DatasetLayout
from schemas.storage import exists, read_json

Each = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Controls:
    """What is known of score, signals and levels."""

    counted: Control | None = None
    """Of the score, for its figure."""
    score: ScoreControl | None = None
    levels: ScoreControl | None = None
    """Of what decides the levels."""
    no_levels: str | None = None
    """Why there is none."""
    signals: tuple[SignalSummary, ...] = ()
    known: dict[str, SignalControl] = field(default_factory=dict)
    """Signal to its control and its histogram."""

    @property
    def all(self) -> list[ScoreControl]:
        """Every control once, that of the levels first."""
        of_signals = (signal.control for signal in self.signals)
        found = (one for one in (self.levels, self.score, *of_signals) if one is not None)
        return list({one.signal: one for one in found}.values())

    @property
    def warnings(self) -> list[str]:
        """What to think of those that hardly tell pairs from exchanged ones."""
        return [one.warning for one in self.all if one.warning is not None]

    @property
    def tables(self) -> list[ScoreControl]:
        """Those that are shown level by level: of the score, and of what decides the levels."""
        found = {one.signal: one for one in (self.score, self.levels) if one is not None}
        return list(found.values())


def read_controls(
    layout: DatasetLayout,
    signals: Sequence[SignalSummary],
    levels: Sequence[LevelContents],
    each_score: Each = iter,
    each_signal: Each = iter,
) -> Controls:
    """Returns the controls of a dataset that is scored here.

    Args:
        signals: of its samples.
        levels: of its samples, by score.
        each_score: yields the tables that are read for the score, whoever wants to know when.
        each_signal: likewise for the signals.

    Raises:
        DatasetError: if a table is damaged.
    """
    by = ranked_by(layout)
    control = read_control(layout, each_score)
    pairs = read_signal_pairs(layout, each_signal) if signals else None
    known = {} if pairs is None else signal_controls(pairs, signals, by, is_cut=is_cut(layout))
    score = None if control is None else summary(control, levels, is_deciding=by == SCORE)
    of_levels = known.get(by, SignalControl(score if by == SCORE else None, None, None))
    return Controls(
        control,
        score,
        of_levels.control,
        of_levels.missing,
        tuple(with_controls(signals, known)),
        known,
    )


def ranked_by(layout: DatasetLayout) -> str:
    """Returns the column whose ranks decide the levels, or how ranks of several are averaged."""
    known = read_json(layout.edges) if exists(layout.edges) else {}
    return str(known.get("settings", {}).get("by", SCORE))
