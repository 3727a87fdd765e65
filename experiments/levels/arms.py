"""What weights and curricula did beside the level vectors: a table and a sentence of the page."""

from collections.abc import Sequence
from typing import Any

from experiments.levels.cells import Cell
from experiments.levels.intervals import BySeed, seeds, spelled, summed, worth

ARM_NAMES = {
    "levels": "level vectors, all pairs",
    "upper_half": "no level vectors, the upper half of the levels alone",
    "low_first": "level vectors, low levels early",
    "low_left_out": "level vectors, low levels left out later",
}
ARM_MEASURES = {
    "better": "the right caption likelier than by a model without levels on all pairs",
    "looks": "an exchanged picture costs more",
}
ARMS_SECTION = """## Weights and curricula

Other ways to use the levels, each beside the others with the same seeds. Models with level vectors
are told the best level. The simplest rival leaves out the lower half, by `--data.level-weights`,
and needs no vectors.

| wrong captions | arm | measure | nats a token, 95 % | seeds | each seed |
|---|---|---|---|---|---|
{rows}
"""


Arms = dict[tuple[str, str], BySeed]
"""Arm and measure to seed to mean and interval."""


def arms_in(rows: Sequence[dict[str, Any]]) -> dict[float, Arms]:
    """Returns what all arms did, on the seeds of all, by share of wrong captions, most first.

    Only settings in which weights or curricula were run.
    """
    found: dict[tuple[float, int, int], Arms] = {}
    for row in rows:
        cell = Cell.named(row["cell"])
        if cell.arm in ARM_NAMES and row["measure"] in ARM_MEASURES:
            arms = found.setdefault((cell.wrong, cell.levels, cell.steps), {})
            arms.setdefault((cell.arm, row["measure"]), {})[cell.seed] = (row["mean"], *row["95 %"])
    settings = {}
    for (wrong, _, _), arms in sorted(found.items(), reverse=True):
        if {arm for arm, _ in arms} - {"levels"}:
            shared = sorted(set.intersection(*(set(by_seed) for by_seed in arms.values())))
            settings[wrong] = {key: {seed: arms[key][seed] for seed in shared} for key in arms}
    return settings


def rival(rows: Sequence[dict[str, Any]]) -> str:
    """Returns what the simplest rival of level vectors does, as the end of a sentence."""
    told = []
    for wrong, arms in arms_in(rows).items():
        if ("upper_half", "better") in arms:
            of_rival, of_levels = arms["upper_half", "better"], arms["levels", "better"]
            told.append(
                f"{worth(of_rival)} where the vectors do by {worth(of_levels)} ({wrong:.0%} "
                f"wrong, the same {seeds(of_levels)})"
            )
    if not told:
        return ""
    return (
        " Training on the upper half of the levels alone, without vectors, does it by "
        f"{', and by '.join(told)}."
    )


def arms_section(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns what weights and curricula do, beside `levels` on their seeds; nothing if not run."""
    lines = [
        f"| {wrong:.0%} | {name} | {words} | {spelled(summed(by_seed))} | {len(by_seed)} | "
        f"{', '.join(f'{mean:+.3f}' for mean, _, _ in by_seed.values())} |"
        for wrong, arms in arms_in(rows).items()
        for measure, words in ARM_MEASURES.items()
        for arm, name in ARM_NAMES.items()
        if (by_seed := arms.get((arm, measure), {}))
    ]
    return [ARMS_SECTION.format(rows="\n".join(lines))] if lines else []
