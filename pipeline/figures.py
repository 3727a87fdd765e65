"""The figures of the report, drawn as SVG."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.contents import SCORE_CELLS, LevelContents
from schemas.manifest import StageCounts

WIDTH = 920
BARS = 80


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


def score_figure(score_counts: NDArray[np.int64], levels: Sequence[LevelContents]) -> Markup | None:
    """Returns the histogram of the scores with the edges of the levels; None without scores."""
    used = np.flatnonzero(score_counts)
    if not len(used):
        return None
    per_bar = max(1, -(-int(used[-1] - used[0] + 1) // BARS))
    first = int(used[0])
    count = -(-int(used[-1] - first + 1) // per_bar)
    padded = np.zeros(count * per_bar, np.int64)
    piece = score_counts[first : first + count * per_bar]
    padded[: len(piece)] = piece
    bars = padded.reshape(count, per_bar).sum(axis=1)
    height, left, bottom, top = 240, 54, 34, 26
    step = (WIDTH - 2 * left) / count
    scale = (height - bottom - top) / int(bars.max())
    low = first / SCORE_CELLS * 2 - 1
    high = (first + count * per_bar) / SCORE_CELLS * 2 - 1

    def place(score: float) -> float:
        return left + (score - low) / (high - low) * (WIDTH - 2 * left)

    parts = _level_bands(levels, place, height - bottom, top)
    parts += [
        f'<rect x="{left + index * step:.2f}" y="{height - bottom - bar * scale:.2f}" '
        f'width="{max(step - 1, 0.5):.2f}" height="{bar * scale:.2f}" class="bar"/>'
        for index, bar in enumerate(bars.tolist())
    ]
    parts += [
        f'<text x="{place(tick):.2f}" y="{height - bottom + 18}" class="tick">{tick:.2f}</text>'
        for tick in np.linspace(low, high, 9).tolist()
    ]
    parts.append(
        f'<line x1="{left}" x2="{WIDTH - left}" y1="{height - bottom}" y2="{height - bottom}" '
        f'class="axis"/><text x="{left - 8}" y="{top + 8}" class="count">{int(bars.max()):,}</text>'
    )
    return _svg(parts, height, "pairs by CLIP score, with the edges of the levels")


def _level_bands(
    levels: Sequence[LevelContents], place: Callable[[float], float], bottom: int, top: int
) -> list[str]:
    parts = []
    for level in levels:
        if level.lowest_score is None or level.highest_score is None:
            continue
        left, right = place(level.lowest_score), place(level.highest_score)
        kind = "odd" if level.level % 2 else "even"
        parts.append(
            f'<rect x="{left:.2f}" y="{top - 8}" width="{max(right - left, 1):.2f}" '
            f'height="{bottom - top + 8}" class="band {kind}"/>'
            f'<line x1="{left:.2f}" x2="{left:.2f}" y1="{top - 8}" y2="{bottom}" class="edge"/>'
            f'<text x="{(left + right) / 2:.2f}" y="{top - 12}" class="tick">{level.level}</text>'
        )
    return parts


def _svg(parts: Sequence[str], height: int, title: str) -> Markup:
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
