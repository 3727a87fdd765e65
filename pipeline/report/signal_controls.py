"""Does a signal tell anything of the pairs? Each beside itself of exchanged pairs, as the score is.

What of a signal cannot be had of exchanged pairs, or says nothing where captions are exchanged, is
said in words: who looks for the control finds why there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.report.contents import LevelContents
from pipeline.report.control import FEWEST_OF_GROUP, standing_out, warning_of
from pipeline.report.pair_groups import SCORE
from pipeline.report.signal_pairs import SignalPairs
from schemas.manifest import LevelControl, ScoreControl, SignalSummary
from scoring.control import Wins, area, area_interval
from scoring.levels.ranks import RankMean, parse_rank_mean

Array = NDArray[np.float32]

OF_PICTURE = (
    "not about the pair: it looks at the picture alone, so that with another caption it is the same"
)
OF_CAPTION = (
    "not about the pair: it looks at the caption alone, so that with another picture it is the same"
)
WITHOUT_EMBEDDINGS = (
    "no control: pairs cannot be exchanged without stored embeddings (score.keep_embeddings)"
)
WITHOUT_OTHERS = (
    "no control: there are no other pairs to exchange captions with, or they are no longer known, "
    "since `purge` has taken pairs from every shard that is looked at"
)
OF_BEFORE = "no control: it was computed before signals had one; `score` with its name adds it"
WITHOUT = {
    "head": OF_PICTURE,
    "itm": (
        "no control: its model would have to be asked about exchanged pairs too, another pass "
        "at least"
    ),
    "clip": (
        "no control: it was computed before signals had one; only --redo score computes it anew"
    ),
    "function": (
        "no control: its function says that it cannot be asked of exchanged pairs (has_control), "
        "or it was computed before signals had one; then `score` with its name adds it"
    ),
    "negclip": OF_BEFORE,
    "neighbours": OF_BEFORE,
}
"""Kind of a signal to why it has no control."""

OUTERMOST = 0.001
"""Share of the values on either side that a histogram may leave out, which one far off would
press into a single bar."""

BARS = 80


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often a signal has which values."""

    low: float
    high: float
    own: NDArray[np.int64]
    """(BARS,)."""
    exchanged: NDArray[np.int64] | None
    """Of exchanged pairs, (BARS,); None without."""
    levels: list[LevelContents]
    """By this signal; they overlap unless it decides them."""


@dataclass(frozen=True, slots=True)
class SignalControl:
    """What is known of a signal."""

    control: ScoreControl | None
    missing: str | None
    """Why there is no control."""
    histogram: Histogram | None


@dataclass(frozen=True, slots=True)
class _Values:
    """A signal of n pairs and of the same exchanged, (n,) and (n, t); NaN where there is none."""

    own: Array
    exchanged: Array
    is_known: NDArray[np.bool_]
    """Which pairs count, (n,)."""


def signal_controls(
    pairs: SignalPairs, signals: Sequence[SignalSummary], by: str, *, is_cut: bool
) -> dict[str, SignalControl]:
    """Returns what is known of each signal, and of `rank_mean:…` if that decides the levels.

    Args:
        by: what decides the levels.
        is_cut: whether pairs were left out when they were cut.
    """
    found = {}
    missing: dict[str, str | None] = {SCORE: None}
    groups = _group_rows(pairs)
    for signal in signals:
        values = _values_of(pairs, signal.name)
        missing[signal.name] = _why_missing(pairs, signal, values)
        found[signal.name] = _control_of(
            pairs, groups, signal.name, values, missing[signal.name], by == signal.name, is_cut
        )
    mean = parse_rank_mean(by)
    if mean is not None:
        values, why = _mean_of_ranks(pairs, mean, missing)
        found[by] = _control_of(pairs, groups, by, values, why, True, is_cut)
    return found


def with_controls(
    signals: Sequence[SignalSummary], known: Mapping[str, SignalControl]
) -> list[SignalSummary]:
    """Returns the signals with their controls, or why there are none."""
    return [
        replace(signal, control=known[signal.name].control, no_control=known[signal.name].missing)
        if signal.name in known
        else signal
        for signal in signals
    ]


def _values_of(pairs: SignalPairs, name: str) -> _Values:
    blank = _nothing(len(pairs.level))
    own = pairs.own.get(name, blank.own)
    return _Values(own, pairs.exchanged.get(name, blank.exchanged), np.isfinite(own))


def _nothing(count: int) -> _Values:
    nothing = np.full((count, 1), np.nan, np.float32)
    return _Values(nothing[:, 0], nothing, np.zeros(count, np.bool_))


def _why_missing(pairs: SignalPairs, signal: SignalSummary, values: _Values) -> str | None:
    """Returns why a signal has no control, or why its control would say nothing; None if it has."""
    exchanged = values.exchanged[values.is_known]
    if not np.isfinite(exchanged).any():
        why = WITHOUT.get(signal.made.get("kind", ""), OF_BEFORE)
        return _why_nothing(pairs) if signal.name in pairs.exchanged else why
    is_there = np.isfinite(exchanged)
    own = np.broadcast_to(values.own[values.is_known, None], exchanged.shape)
    if _are_the_same(exchanged[is_there], own[is_there]):
        return OF_PICTURE
    partner = pairs.partner[values.is_known]
    is_there &= partner >= 0
    if is_there.any() and _are_the_same(exchanged[is_there], values.own[partner[is_there]]):
        return OF_CAPTION
    return None


def _why_nothing(pairs: SignalPairs) -> str:
    """Returns why no pair is exchanged, where signals are."""
    return WITHOUT_OTHERS if SCORE in pairs.exchanged else WITHOUT_EMBEDDINGS


def _are_the_same(one: Array, other: Array) -> bool:
    """Returns whether values differ by no more than the order of sums makes of them."""
    return bool(np.abs(one - other).max() <= 1e-5 * np.abs(one).max())


def _control_of(
    pairs: SignalPairs,
    groups: "_Groups",
    name: str,
    values: _Values,
    missing: str | None,
    is_deciding: bool,
    is_cut: bool,
) -> SignalControl:
    """Returns what is known of a signal."""
    own, exchanged = values.own[values.is_known], values.exchanged[values.is_known]
    if not len(own):
        return SignalControl(None, missing, None)
    level = pairs.level[values.is_known]
    levels = _levels_of_signal(own, level)
    if missing is not None:
        return SignalControl(None, missing, _histogram(own, None, levels))
    wins = Wins.of(own, exchanged)
    cells = _Cells.of(own, exchanged)
    shares = _exchanged_by_level(exchanged, levels, is_cut)
    control = ScoreControl(
        signal=name,
        pairs=wins.pairs,
        beats_ratio=wins.ratio,
        beats_interval=wins.interval(),
        auc=area(cells.counts(own), cells.exchanged),
        auc_interval=area_interval(cells.counts(own), cells.exchanged, wins.pairs),
        warning=warning_of(wins, name, is_deciding=is_deciding),
        levels=_level_rows(own, exchanged, level, cells, shares),
        standing_out=standing_out(groups.wins(values), wins.ratio),
    )
    return SignalControl(control, None, _histogram(own, exchanged, levels))


@dataclass(frozen=True, slots=True)
class _Cells:
    """A cell for each value that there is."""

    values: Array
    """Ascending."""
    exchanged: NDArray[np.int64]
    """How many exchanged pairs have each."""

    @classmethod
    def of(cls, own: Array, exchanged: Array) -> "_Cells":
        """Returns the cells of pairs' values, (n,), and of exchanged ones, (n, t)."""
        tried = exchanged[np.isfinite(exchanged)]
        values = np.unique(np.concatenate([own, tried]))
        cells = cls(values, np.zeros(0, np.int64))
        return cls(values, cells.counts(tried))

    def counts(self, some: Array) -> NDArray[np.int64]:
        """Returns how many of some values have each."""
        places = np.searchsorted(self.values, some)
        return np.bincount(places, minlength=len(self.values)).astype(np.int64)


def _level_rows(
    own: Array,
    exchanged: Array,
    level: NDArray[np.int64],
    cells: _Cells,
    shares: Mapping[int, float],
) -> list[LevelControl]:
    """Returns how the pairs of each level do."""
    of_all = cells.counts(own)
    rows = []
    for number in np.unique(level[level > 0]).tolist():
        is_here = level == number
        wins = Wins.of(own[is_here], exchanged[is_here])
        counts = cells.counts(own[is_here])
        rows.append(
            LevelControl(
                level=number,
                pairs=wins.pairs,
                beats_ratio=wins.ratio,
                beats_interval=wins.interval(),
                by_chance=area(counts, of_all),
                auc=area(counts, cells.exchanged),
                auc_interval=area_interval(counts, cells.exchanged, len(own)),
                exchanged_ratio=shares.get(number),
            )
        )
    return rows


def _levels_of_signal(own: Array, level: NDArray[np.int64]) -> list[LevelContents]:
    """Returns each level's pairs with the lowest and the highest value of a signal."""
    levels = []
    for number in np.unique(level[level > 0]).tolist():
        levels.append(LevelContents(number))
        levels[-1].add(own[level == number].astype(np.float64))
    return levels


def _exchanged_by_level(
    exchanged: Array, levels: Sequence[LevelContents], is_cut: bool
) -> dict[int, float]:
    """Returns the share of exchanged pairs of each level; nothing if levels overlap."""
    tried = exchanged[np.isfinite(exchanged)]
    lows = [level.lowest_score or 0.0 for level in levels]
    highs = [level.highest_score or 0.0 for level in levels]
    if any(high > low for high, low in zip(highs, lows[1:], strict=False)):
        return {}
    if lows and not is_cut:
        lows[0] = -np.inf  # what is lower than every pair is of the lowest level
    below = np.searchsorted(np.sort(tried).astype(np.float64), [*lows, np.inf])
    shares = np.diff(below) / max(len(tried), 1)
    return {level.level: float(share) for level, share in zip(levels, shares, strict=True)}


def _histogram(own: Array, exchanged: Array | None, levels: list[LevelContents]) -> Histogram:
    """Returns how often a signal has which values, all but the outermost."""
    tried = None if exchanged is None else exchanged[np.isfinite(exchanged)]
    both = own if tried is None else np.concatenate([own, tried])
    sides = (OUTERMOST, 1.0 - OUTERMOST)
    low, high = np.quantile(both.astype(np.float64), sides, method="nearest").tolist()
    high = high if high > low else low + max(abs(low), 1.0) * 1e-3
    edges = np.linspace(low, high, BARS + 1)
    counts = [None if some is None else np.histogram(some, edges)[0] for some in (own, tried)]
    assert counts[0] is not None
    return Histogram(low, high, counts[0], counts[1], levels)


def _mean_of_ranks(
    pairs: SignalPairs, mean: RankMean, missing: Mapping[str, str | None]
) -> tuple[_Values, str | None]:
    """Returns the mean of the ranks of pairs and of exchanged ones; why, if there is none.

    An exchanged pair has the rank that its value would have among those of the pairs.
    """
    known = [_values_of(pairs, name) for name in mean.names]
    is_known = np.logical_and.reduce([one.is_known for one in known])
    is_known &= pairs.partner.max(axis=1) >= 0
    if (pairs.level > 0).any():
        is_known &= pairs.level > 0
    if not is_known.any():
        return _nothing(len(is_known)), _why_nothing(pairs)
    own = np.zeros(len(is_known), np.float64)
    exchanged = np.zeros(pairs.partner.shape, np.float64)
    for name, weight, values in zip(mean.names, mean.weights, known, strict=True):
        why = missing.get(name)
        others = values.exchanged
        if why == OF_PICTURE:
            others = np.broadcast_to(values.own[:, None], exchanged.shape)
        elif why == OF_CAPTION:
            others = np.where(pairs.partner < 0, np.nan, values.own[pairs.partner])
        elif why is not None:
            return _nothing(len(is_known)), f"{name}: {why}"
        ordered = np.sort(values.own[is_known])
        own += weight * _share_below(values.own, ordered)
        exchanged += weight * np.where(np.isfinite(others), _share_below(others, ordered), np.nan)
    total = sum(mean.weights)
    means = (own / total).astype(np.float32), (exchanged / total).astype(np.float32)
    return _Values(*means, is_known), None


def _share_below(values: Array, ordered: Array) -> NDArray[np.float64]:
    """Returns which share of ascending values lies below each; equal ones are half."""
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(below / (2 * len(ordered)), np.float64)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups of pairs that are large enough to be told from the others."""

    rows: dict[str, dict[str, NDArray[np.int64]]]
    """Kind to name to the rows of its pairs."""
    is_within: dict[str, NDArray[np.bool_]]
    """Kind to which exchanged pairs have a caption of their own group, (n, t)."""

    def wins(self, values: _Values) -> dict[str, dict[str, Wins]]:
        """Returns how often pairs beat exchanged ones of their group, kind by kind."""
        found: dict[str, dict[str, Wins]] = {}
        for kind, names in self.rows.items():
            within = np.where(self.is_within[kind], values.exchanged, np.nan)
            found[kind] = {}
            for name, rows in names.items():
                known = rows[values.is_known[rows]]
                found[kind][name] = Wins.of(values.own[known], within[known])
        return found


def _group_rows(pairs: SignalPairs) -> _Groups:
    """Returns the groups that pairs are in, of each kind with more than one."""
    rows: dict[str, dict[str, NDArray[np.int64]]] = {}
    is_within: dict[str, NDArray[np.bool_]] = {}
    for kind, names in pairs.groups.items():
        encoded = pa.array(names).dictionary_encode()
        codes = np.asarray(encoded.indices.to_numpy(), np.int64)
        counts = np.bincount(codes)
        large = np.flatnonzero(counts >= FEWEST_OF_GROUP)
        if len(counts) < 2 or not len(large):
            continue
        is_within[kind] = (codes[pairs.partner] == codes[:, None]) & (pairs.partner >= 0)
        rows[kind] = {
            encoded.dictionary[code].as_py(): np.flatnonzero(codes == code)
            for code in large.tolist()
        }
    return _Groups(rows, is_within)
