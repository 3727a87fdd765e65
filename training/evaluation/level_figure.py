"""What was found of a model's levels, as a table and as a picture."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from schemas.storage import commit_file, commit_text
from schemas.terminal import Console
from training.evaluation.levels import LevelsFound


def write_levels(found: LevelsFound, folder: Path) -> None:
    """Writes `levels.json`, and `levels.png` where matplotlib is there."""
    commit_text(str(folder / "levels.json"), json.dumps(found.to_json(), indent=2) + "\n")
    if importlib.util.find_spec("matplotlib") is None:  # a bare GPU machine lacks it
        return
    with commit_file(str(folder / "levels.png")) as file:
        _figure(found).savefig(file, format="png", dpi=120)


def levels_table(found: LevelsFound) -> Table:
    """Returns what was found of each level."""
    table = Table(
        "level", "length", "moved", "told it: loss", "more than told the best", "95 % interval",
        title=_title(found),
    )  # fmt: skip
    for level in range(1, found.num_levels + 1):
        told = found.told.get(level)
        moved = found.vectors.moved
        table.add_row(
            str(level),
            f"{found.vectors.lengths[level - 1]:.3f}",
            "" if moved is None else f"{moved[level - 1]:.3f}",
            "" if told is None else f"{told.loss:.4f}",
            "" if told is None else f"{told.difference:+.4f}",
            "" if told is None else f"{told.low:+.4f} to {told.high:+.4f}",
        )
    return table


def gate_table(found: LevelsFound) -> Table | None:
    """Returns what the gate gives each local vector by kind of task; None if it mixed nothing."""
    if not found.gate:
        return None
    levels = [f"level {level}" for level in range(1, found.num_levels)]
    table = Table("task", "samples", *levels, title="the gate's weights: mean ± spread")
    for kind, weights in found.gate.items():
        pairs = zip(weights.mean, weights.spread, strict=True)
        cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in pairs]
        table.add_row(kind, f"{weights.samples:,}", *cells)
    return table


def print_levels(found: LevelsFound) -> None:
    """Shows both tables at the terminal."""
    console = Console(stderr=True)
    console.print(levels_table(found))
    if (gate := gate_table(found)) is not None:
        console.print(gate)


def _title(found: LevelsFound) -> str:
    if not found.told:
        return "alignment levels"
    return (
        f"alignment levels: {found.samples:,} held-out samples with pictures, "
        f"loss {found.untold:.4f} as they are"
    )


def _figure(found: LevelsFound) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    _draw_vectors(panels[0, 0], found)
    _draw_cosines(figure, panels[0, 1], found)
    _draw_told(panels[1, 0], found)
    _draw_gate(panels[1, 1], found)
    return figure


def _draw_vectors(axes: Any, found: LevelsFound) -> None:
    levels = list(range(1, found.num_levels + 1))
    axes.plot(levels, found.vectors.lengths, "o-", label="length")
    if found.vectors.start_lengths is not None:
        axes.plot(levels, found.vectors.start_lengths, "s--", label="length at the start")
        axes.bar(levels, found.vectors.moved, alpha=0.4, label="way from the start")
    axes.set(title="the level vectors", xlabel="level", xticks=levels)
    axes.set_ylim(bottom=0)
    axes.legend()


def _draw_cosines(figure: Any, axes: Any, found: LevelsFound) -> None:
    edges = (0.5, found.num_levels + 0.5)
    picture = axes.imshow(
        found.vectors.cosines, vmin=-1, vmax=1, cmap="RdBu_r", extent=(*edges, *edges[::-1])
    )
    levels = list(range(1, found.num_levels + 1))
    axes.set(title="their cosines", xlabel="level", ylabel="level", xticks=levels, yticks=levels)
    figure.colorbar(picture, ax=axes)


def _draw_told(axes: Any, found: LevelsFound) -> None:
    axes.set(title="told each level, beside told the best", xlabel="level that it is told")
    if not found.told:
        _say(axes, "no held-out samples with pictures")
        return
    levels = list(found.told)
    told = list(found.told.values())
    means = [one.difference for one in told]
    below = [max(0.0, one.difference - one.low) for one in told]
    above = [max(0.0, one.high - one.difference) for one in told]
    axes.errorbar(levels, means, yerr=(below, above), fmt="o-", capsize=4)
    axes.axhline(0.0, color="grey", linewidth=1)
    axes.set(ylabel="loss, nats per target token", xticks=levels)
    axes.grid(alpha=0.3)


def _draw_gate(axes: Any, found: LevelsFound) -> None:
    axes.set(title="the gate's weights by kind of task", xlabel="level")
    if not found.gate:
        _say(axes, "the gate mixed nothing")
        return
    levels = list(range(1, found.num_levels))
    for number, (kind, weights) in enumerate(found.gate.items()):
        places = [level + 0.12 * (number - (len(found.gate) - 1) / 2) for level in levels]
        label = f"{kind} ({weights.samples:,})"
        axes.errorbar(places, weights.mean, yerr=weights.spread, fmt="o", capsize=3, label=label)
    axes.axhline(1 / len(levels), color="grey", linewidth=1, linestyle="--", label="even")
    axes.set(ylabel="mean and spread over samples", xticks=levels)
    axes.set_ylim(bottom=0)
    axes.legend()


def _say(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color="grey")
    axes.set(xticks=[], yticks=[])
