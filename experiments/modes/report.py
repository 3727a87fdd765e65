"""From the cells of the experiment with modes to a page with tables, and its plot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from experiments.levels.page import kept_block
from experiments.modes.page import Figures, page

mpl.use("Agg")
import matplotlib.pyplot as plt

DRAWS = 10_000
"""Of the bootstrap."""
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Number of seeds → two-sided 95 % of Student's t with one degree of freedom less."""
BASE = "none"
TOLD = {"stage1_levels_8": "told level 8", "stage1_levels_1": "told level 1"}
TOLD["stage1_none_None"] = "no level vectors"
MEASURES = {
    "nats_per_token": ("caption loss", -1, 3),
    "gain_nats": ("picture's gain", 1, 3),
    "is_first": ("R@1", 1, 3),
    "is_first_plain": ("R@1 by likelihood alone", 1, 3),
}
"""Measure of a picture → its name, which sign is better, and digits."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far something lies from what it is compared with."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval."""

    def __str__(self) -> str:
        """Returns it as a cell of a table."""
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"

    def verdict(self, better: int) -> str:
        """Returns what the interval says; `better` is the sign of an improvement."""
        if self.low <= 0.0 <= self.high:
            return "no difference seen"
        return "better" if self.mean * better > 0 else "worse"


@dataclass(frozen=True, slots=True)
class Findings:
    """All cells.

    Shapes: S seeds, Q pictures.
    """

    modes: tuple[str, ...]
    seed_numbers: tuple[int, ...]
    cells: dict[str, list[dict[str, Any]]]
    """Name of a cell → its content for each seed, S of them."""

    @classmethod
    def read(cls, work: Path, seeds: Sequence[int], modes: tuple[str, ...]) -> "Findings":
        """Returns what the cells of these seeds hold."""
        names = (*modes, *TOLD)
        cells = {
            name: [json.loads((work / "cells" / f"seed{s}_{name}.json").read_text()) for s in seeds]
            for name in names
        }
        return cls(modes, tuple(seeds), cells)

    @property
    def seeds(self) -> int:
        """How many seeds there are, S."""
        return len(self.seed_numbers)

    def pictures(self, name: str, measure: str) -> NDArray[np.float64]:
        """Returns a measure of every picture with every seed, (S, Q)."""
        return np.array([cell["pictures"][measure] for cell in self.cells[name]])

    def losses(self, name: str) -> NDArray[np.float64]:
        """Returns the losses on the held-out instructions, (S,)."""
        return np.array([cell["validation_loss"] for cell in self.cells[name]])

    def loss_difference(self, name: str, base: str = BASE) -> Difference:
        """Returns the difference of the losses, paired by seed, with Student's interval."""
        found = self.losses(name) - self.losses(base)
        half = T_975[len(found)] * found.std(ddof=1) / np.sqrt(len(found))
        return Difference(found.mean(), found.mean() - half, found.mean() + half)

    def difference(self, name: str, base: str, measure: str) -> Difference:
        """Returns the difference of a measure, paired by seed and picture.

        Its interval is a percentile bootstrap that draws both seeds and pictures anew.
        """
        found = self.pictures(name, measure) - self.pictures(base, measure)
        rng = np.random.default_rng(0)
        seeds, pictures = found.shape
        draws = np.empty(DRAWS)
        for draw in range(DRAWS):
            rows = rng.integers(seeds, size=seeds)
            columns = rng.integers(pictures, size=pictures)
            draws[draw] = found[np.ix_(rows, columns)].mean()
        low, high = np.percentile(draws, [2.5, 97.5])
        return Difference(float(found.mean()), float(low), float(high))


def can_report(modes: Sequence[str], seeds: Sequence[int]) -> bool:
    """Returns whether there is something to compare, and an interval for so many seeds."""
    return BASE in modes and len(modes) > 1 and len(seeds) in T_975


def markdown(findings: Findings, wrong: list[tuple[int, int]], share_shuffled: float) -> str:
    """Returns the page."""
    cells = [cell for cells in findings.cells.values() for cell in cells]
    figures = Figures(
        seeds=findings.seed_numbers,
        pictures=findings.pictures(BASE, "is_first").shape[1],
        settings=cells[0]["settings"],
        share_shuffled=share_shuffled,
        core_minutes=sum(cell["cpu_seconds"] for cell in cells) / 60,
        levels=level_table(wrong),
        first=first_stage_table(findings),
        both=both_stages_table(findings),
        verdicts=verdicts(findings),
        gates=gate_table(findings),
    )
    return page(figures)


def level_table(wrong: list[tuple[int, int]]) -> list[str]:
    """Returns how many pairs of each level have a wrong caption."""
    return [
        "| level | " + " | ".join(str(level) for level in range(1, len(wrong) + 1)) + " |",
        "|---|" + "---|" * len(wrong),
        "| wrong captions | " + " | ".join(f"{n / total:.1%}" for n, total in wrong) + " |",
    ]


def first_stage_table(findings: Findings) -> list[str]:
    """Returns what models of stage 1 know."""
    shown = ("nats_per_token", "gain_nats", "is_first")
    names = [MEASURES[measure][0] for measure in shown]
    lines = [
        "| stage 1 | " + " | ".join(names) + " | " + " | ".join(f"{n}, difference" for n in names)
        + " |",
        "|---|" + "---|" * 2 * len(names),
    ]  # fmt: skip
    base = "stage1_none_None"
    for name, title in TOLD.items():
        cells = [f"{findings.pictures(name, measure).mean():.3f}" for measure in shown]
        cells += [
            "" if name == base else str(findings.difference(name, base, measure))
            for measure in shown
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def both_stages_table(findings: Findings) -> list[str]:
    """Returns what the models of both stages know."""
    names = ["validation loss", *(name for name, _, _ in MEASURES.values())]
    lines = ["| mode | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for mode in findings.modes:
        losses = findings.losses(mode)
        cells = [f"{losses.mean():.3f} ± {losses.std(ddof=1):.3f}"]
        for measure in MEASURES:
            by_seed = findings.pictures(mode, measure).mean(axis=1)
            cells.append(f"{by_seed.mean():.3f} ± {by_seed.std(ddof=1):.3f}")
        lines.append(f"| `{mode}` | " + " | ".join(cells) + " |")
    lines += ["", "| minus `none` | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for mode in findings.modes:
        if mode != BASE:
            cells = [str(findings.loss_difference(mode))]
            cells += [str(findings.difference(mode, BASE, measure)) for measure in MEASURES]
            lines.append(f"| `{mode}` | " + " | ".join(cells) + " |")
    return lines


def verdicts(findings: Findings) -> list[str]:
    """Returns a sentence for each mode: what the intervals say of it against `none`."""
    lines = []
    for mode in findings.modes:
        if mode == BASE:
            continue
        said = [f"validation loss {findings.loss_difference(mode).verdict(-1)}"]
        for measure in ("nats_per_token", "gain_nats", "is_first"):
            name, better, _ = MEASURES[measure]
            said.append(f"{name} {findings.difference(mode, BASE, measure).verdict(better)}")
        lines.append(f"- `{mode}` beside `none`: {', '.join(said)}.")
    against = {
        mode: findings.difference("adaptive", mode, "gain_nats").verdict(1)
        for mode in findings.modes
        if mode not in ("adaptive", BASE)
    }
    told = findings.difference("stage1_levels_8", "stage1_levels_1", "gain_nats")
    having = findings.difference("stage1_levels_8", "stage1_none_None", "gain_nats")
    said = [f"`{mode}` {verdict}" for mode, verdict in against.items()]
    lines.append(f"- `adaptive` beside the other modes, by the picture's gain: {', '.join(said)}.")
    lines.append(
        "- After stage 1, by the picture's gain: a model that is told level 8 beside the same told "
        f"level 1: {told} nats, {told.verdict(1)}; beside one without level vectors: "
        f"{having} nats, {having.verdict(1)}."
    )
    return lines


def gate_table(findings: Findings) -> list[str]:
    """Returns the weights that the gates gave, of all seeds."""
    gated = [mode for mode in findings.modes if "gate_mean" in findings.cells[mode][0]]
    count = len(findings.cells[gated[0]][0]["gate_mean"])
    lines = [
        "| gate of mode | " + " | ".join(f"level {n}" for n in range(1, count + 1)) + " |",
        "|---|" + "---|" * count,
    ]
    for mode in gated:
        means = np.array([cell["gate_mean"] for cell in findings.cells[mode]])
        spreads = np.array([cell["gate_deviation"] for cell in findings.cells[mode]])
        cells = [
            f"{mean:.3f} ± {spread:.3f}"
            for mean, spread in zip(means.mean(0), spreads.mean(0), strict=True)
        ]
        lines.append(f"| `{mode}` | " + " | ".join(cells) + " |")
    return lines


def write(folder: Path, findings: Findings, text: str) -> None:
    """Writes the page and its plot."""
    heading, rest = text.split("\n", 1)
    kept = kept_block(folder / "modes.md")
    text = "\n".join([heading, "", *kept, rest.lstrip("\n")])
    (folder / "modes.md").write_text(text, encoding="utf-8")
    draw(findings, folder / "modes.png")


def draw(findings: Findings, path: Path) -> None:
    """Writes the plot: differences from what has no vectors, a point for each seed."""
    figure, panels = plt.subplots(1, 4, figsize=(14, 3.9), dpi=110)
    modes = [mode for mode in findings.modes if mode != BASE]
    base = "stage1_none_None"
    told = [name for name in TOLD if name != base]
    draw_measure(panels[0], findings, told, base, "gain_nats")
    panels[0].set_xticks(range(len(told)), [TOLD[name] for name in told])
    panels[0].set_title("stage 1: picture's gain, nats", fontsize=10)
    points = {mode: findings.losses(mode) - findings.losses(BASE) for mode in modes}
    intervals = {mode: findings.loss_difference(mode) for mode in modes}
    draw_panel(panels[1], points, intervals)
    panels[1].set_title("validation loss (lower is better)", fontsize=10)
    draw_measure(panels[2], findings, modes, BASE, "gain_nats")
    panels[2].set_title("picture's gain, nats (higher is better)", fontsize=10)
    draw_measure(panels[3], findings, modes, BASE, "is_first")
    panels[3].set_title("R@1 (higher is better)", fontsize=10)
    panels[0].set_ylabel("minus the same without level vectors")
    note = "dots: seeds; squares: means with 95 % intervals, as the page says"
    figure.text(0.5, 0.01, note, ha="center", fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def draw_measure(
    panel: Any, findings: Findings, names: Sequence[str], base: str, measure: str
) -> None:
    """Draws how a measure of the pictures differs from its base."""
    points = {
        name: (findings.pictures(name, measure) - findings.pictures(base, measure)).mean(axis=1)
        for name in names
    }
    intervals = {name: findings.difference(name, base, measure) for name in names}
    draw_panel(panel, points, intervals)


def draw_panel(
    panel: Any, points: dict[str, NDArray[np.float64]], intervals: dict[str, Difference]
) -> None:
    """Draws differences from zero, one name beside the other."""
    for place, (name, found) in enumerate(intervals.items()):
        panel.plot(np.full(len(points[name]), place - 0.12), points[name], "o", ms=4, color="#999")
        panel.errorbar(
            place + 0.08, found.mean, [[found.mean - found.low], [found.high - found.mean]],
            marker="s", ms=5, capsize=3, color="#0b6e99",
        )  # fmt: skip
    panel.axhline(0.0, linewidth=0.8, linestyle=":", color="#555")
    panel.set_xticks(range(len(points)), list(points))
    panel.set_xlim(-0.5, len(points) - 0.5)
    panel.spines[["top", "right"]].set_visible(False)
