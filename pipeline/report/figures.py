"""The figures of the report, drawn as SVG."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.report.contents import SCORE_CELLS, LevelContents
from pipeline.report.signal_controls import Histogram
from schemas.manifest import StageCounts

WIDTH = 920
BARS = 80
LEFT, RIGHT, TOP, BOTTOM = 92, 900, 26, 206
"""The sides of the histogram's plot; its axes and the levels' numbers lie around it."""


def balance_figure(stages: Mapping[str, StageCounts]) -> Markup:
    """Returns the way of the rows through the stages: a bar each, what is kept and what is not."""
    row_height, left, right = 34, 118, 250
    total = max((counts.rows_in for counts in stages.values()), default=0) or 1
    scale = (WIDTH - left - right) / total
    parts = []
    for index, (stage, counts) in enumerate(stages.items()):
        top = index * row_height + 4
        kept, lost = counts.kept * scale, (counts.rows_in - counts.kept) * scale
        rejected = sum(counts.rejected.values())
        loss = f", {rejected:,} rejected" if rejected else ""
        label = f"{counts.kept:,} kept{loss}"
        middle = top + 17
        parts.append(
            f'<text x="{left - 12}" y="{middle}" class="name">{escape(stage)}</text>'
            f'<rect x="{left}" y="{top}" width="{kept:.2f}" height="24" class="kept"/>'
            f'<rect x="{left + kept:.2f}" y="{top}" width="{lost:.2f}" height="24" class="lost"/>'
            f'<text x="{left + kept + lost + 10:.2f}" y="{middle}">{label}</text>'
        )
    return _svg(parts, len(stages) * row_height, "rows kept and rejected, stage by stage")


def score_figure(
    score_counts: NDArray[np.int64],
    levels: Sequence[LevelContents],
    exchanged: NDArray[np.int64] | None = None,
) -> Markup | None:
    """Returns the histogram of the scores with the edges of the levels; None without scores.

    Args:
        exchanged: exchanged pairs by the same cells, drawn behind it as if they were as many.
    """
    total = int(score_counts.sum())
    if not total:
        return None
    behind = np.zeros(SCORE_CELLS) if exchanged is None else exchanged * (total / exchanged.sum())
    used = np.flatnonzero(score_counts + behind)
    first = int(used[0])
    per_bar = max(1, -(-int(used[-1] - first + 1) // BARS))
    bars = _bars(score_counts[first : int(used[-1]) + 1], per_bar)
    low = first / SCORE_CELLS * 2 - 1
    high = (first + len(bars) * per_bar) / SCORE_CELLS * 2 - 1
    others = _bars(behind[first : int(used[-1]) + 1], per_bar)
    outline = None if exchanged is None else others
    title = "pairs by CLIP score, with the edges of the levels"
    return _histogram(bars, outline, (low, high), levels, "CLIP score", title)


def signal_figure(name: str, found: Histogram) -> Markup:
    """Returns the histogram of a signal, that of exchanged pairs behind it where it is known."""
    behind = None
    if found.exchanged is not None:
        behind = found.exchanged * (found.own.sum() / max(found.exchanged.sum(), 1))
    title = f"pairs by {name}{'' if behind is None else ', exchanged pairs behind them'}"
    sides = (found.low, found.high)
    outline = None if behind is None else behind.tolist()
    return _histogram(found.own.tolist(), outline, sides, found.levels, name, title)


def _histogram(
    bars: Sequence[float],
    others: Sequence[float] | None,
    sides: tuple[float, float],
    levels: Sequence[LevelContents],
    name: str,
    title: str,
) -> Markup:
    """Returns bars between two values, others as an outline behind them, and levels' edges."""
    low, high = sides
    step = (RIGHT - LEFT) / len(bars)
    highest = max([*bars, *(others or ())])
    scale = (BOTTOM - TOP) / highest

    def place(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (RIGHT - LEFT)

    bands = [] if _overlap(levels) else _level_bands(levels, place)
    parts = bands + _count_axis(round(highest), scale)
    if others is not None:
        parts.append(_outline(others, step, scale))
    parts += [
        f'<rect x="{LEFT + index * step:.2f}" y="{BOTTOM - bar * scale:.2f}" '
        f'width="{max(step - 1, 0.5):.2f}" height="{bar * scale:.2f}" class="bar"/>'
        for index, bar in enumerate(bars)
    ]
    parts += _value_axis(low, high, len(bars), place, name)
    return _svg(parts, BOTTOM + 44, title)


def round_ticks(low: int, high: int, most: int) -> range:
    """Returns round numbers from `low` to `high`: every one, second, fifth, tenth and so on.

    Args:
        low: The first number that may be returned.
        high: The last one.
        most: How many at most, 3 or more.
    """
    for step in (digit * 10**power for power in itertools.count() for digit in (1, 2, 5)):
        ticks = range(-(-low // step) * step, high + 1, step)
        if len(ticks) <= most:
            break
    return ticks


def _bars(cells: NDArray[Any], per_bar: int) -> list[float]:
    padded = np.zeros(-(-len(cells) // per_bar) * per_bar, cells.dtype)
    padded[: len(cells)] = cells
    totals: list[float] = padded.reshape(-1, per_bar).sum(axis=1).tolist()
    return totals


def _outline(bars: Sequence[float], step: float, scale: float) -> str:
    """Returns the histogram of the exchanged pairs as one area with a line around it."""
    corners = [f"M{LEFT} {BOTTOM}"]
    for index, bar in enumerate(bars):
        left, top = LEFT + index * step, BOTTOM - bar * scale
        corners.append(f"L{left:.2f} {top:.2f} H{left + step:.2f}")
    return f'<path d="{" ".join(corners)} V{BOTTOM} Z" class="exchanged"/>'


def _value_axis(
    low: float, high: float, bars: int, place: Callable[[float], float], name: str
) -> list[str]:
    unit = 10.0 ** math.floor(math.log10((high - low) / bars) + 1e-9)  # no finer than a bar
    ticks = round_ticks(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9), 10)
    decimals = max(2 if high - low < 2 else 0, -math.floor(math.log10(unit * ticks.step) + 1e-9))
    return [
        f'<line x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}" class="axis"/>',
        *(
            f'<text x="{place(tick * unit):.2f}" y="{BOTTOM + 18}" class="tick">'
            f"{tick * unit:.{decimals}f}</text>"
            for tick in ticks
        ),
        f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 38}" class="title">{escape(name)}</text>',
    ]


def _count_axis(highest: int, scale: float) -> list[str]:
    middle = (TOP + BOTTOM) / 2
    parts = [
        f'<text x="12" y="{middle}" transform="rotate(-90 12 {middle})" class="title">pairs</text>'
    ]
    for tick in round_ticks(0, highest, 7):
        y = BOTTOM - tick * scale
        parts.append(
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y:.2f}" y2="{y:.2f}" class="axis"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.2f}" class="count">{tick:,}</text>'
        )
    return parts


def _overlap(levels: Sequence[LevelContents]) -> bool:
    """Returns whether levels lie across each other, as they do that another signal decides."""
    filled = [level for level in levels if level.count]
    return (
        sum(
            (before.highest_score or 0.0) > (after.lowest_score or 0.0)
            for before, after in itertools.pairwise(filled)
        )
        > len(filled) // 2
    )


def _level_bands(levels: Sequence[LevelContents], place: Callable[[float], float]) -> list[str]:
    parts = []
    for level in levels:
        if level.lowest_score is None or level.highest_score is None:
            continue
        left, right = place(level.lowest_score), place(level.highest_score)
        kind = "odd" if level.level % 2 else "even"
        parts.append(
            f'<rect x="{left:.2f}" y="{TOP - 8}" width="{max(right - left, 1):.2f}" '
            f'height="{BOTTOM - TOP + 8}" class="band {kind}"/>'
            f'<line x1="{left:.2f}" x2="{left:.2f}" y1="{TOP - 8}" y2="{BOTTOM}" class="edge"/>'
            f'<text x="{(left + right) / 2:.2f}" y="{TOP - 12}" class="tick">{level.level}</text>'
        )
    if parts:
        parts.append(f'<text x="{LEFT - 8}" y="{TOP - 12}" class="count">level</text>')
    return parts


def _svg(parts: Sequence[str], height: int, title: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
