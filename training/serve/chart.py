"""The mixed alignment levels of an answer, as a small chart for the page."""

from collections.abc import Sequence

WIDTH, HEIGHT, TOP, FOOT, GAP = 196, 44, 12, 12, 3


def chart(mixed: Sequence[float]) -> str:
    """Returns a picture, in SVG, with a bar for each level; it has the page's colours.

    Args:
        mixed: (N,) weights of 0 to 1, level 1 first.
    """
    each = WIDTH / len(mixed)
    bars = []
    for number, weight in enumerate(mixed, start=1):
        left, height = each * (number - 1) + GAP / 2, weight * HEIGHT
        middle, top = left + (each - GAP) / 2, TOP + HEIGHT - height
        kind = "global" if number == len(mixed) else "local"
        bars.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{each - GAP:.1f}" '
            f'height="{max(height, 0.5):.1f}"><title>level {number}: {weight:.3f}</title></rect>'
            f'<text x="{middle:.1f}" y="{top - 2:.1f}">{weight:.2f}</text>'
            f'<text x="{middle:.1f}" y="{TOP + HEIGHT + FOOT - 2}">{number}</text>'
        )
    said = ", ".join(f"level {n} {weight:.2f}" for n, weight in enumerate(mixed, start=1))
    return (
        f'<figure class="levels"><svg viewBox="0 0 {WIDTH} {TOP + HEIGHT + FOOT}" role="img" '
        f'aria-label="Alignment levels mixed: {said}">{"".join(bars)}</svg>'
        "<figcaption>alignment levels mixed in this answer</figcaption></figure>"
    )


CSS = """
.levels { margin: 0; max-width: 230px; }
.levels svg { width: 100%; display: block; }
.levels rect.local { fill: var(--color-accent, #4f46e5); opacity: .75; }
.levels rect.global { fill: var(--body-text-color, #555); opacity: .35; }
.levels text { font-size: 7.5px; text-anchor: middle; fill: var(--body-text-color, #333); }
.levels figcaption { font-size: 11px; color: var(--body-text-color, #333); opacity: .8; }
"""
