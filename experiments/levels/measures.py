"""What is made of the losses of `run.py`: its measures, their intervals, the table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

from experiments.levels.cells import Cell


def difference(
    more: dict[str, list[float]], less: dict[str, list[float]], seed: int = 0
) -> tuple[float, float, float]:
    """Returns by how much the first loss is above the second, with the bootstrap's interval."""
    keys = sorted(more.keys() & less.keys())
    gain = np.array([more[key][0] - less[key][0] for key in keys])
    targets = np.array([less[key][1] for key in keys])
    drawn = np.random.default_rng(seed).integers(0, len(keys), size=(2000, len(keys)))
    means = gain[drawn].sum(axis=1) / targets[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gain.sum() / targets.sum()), float(low), float(high)


def measures(
    result: dict[str, dict[str, list[float]]], plain: dict[str, dict[str, list[float]]] | None
) -> dict[str, tuple[float, float, float]]:
    """Returns the measures of the docstring that can be had of an arm.

    Args:
        plain: of the arm without levels, of the same data and seed.
    """
    if "told_N" not in result:
        of_arm = {"looks": difference(result["plain_exchanged"], result["plain"])}
        if plain is not None and plain is not result:
            of_arm["better"] = difference(plain["plain"], result["plain"])
        return of_arm

    def worth(name: str) -> dict[str, list[float]]:
        other = result[f"{name}_exchanged"]
        return {key: [other[key][0] - loss, n] for key, (loss, n) in result[name].items()}

    found = {
        "trust": difference(worth("told_N"), worth("told_1")),
        "told": difference(result["told_1"], result["told_N"]),
        "looks": difference(result["told_N_exchanged"], result["told_N"]),
    }
    if plain is not None:
        found["better"] = difference(plain["plain"], result["told_N"])
    return found


def report(out: Path) -> list[dict[str, Any]]:
    """Returns the measures of all cells that are done, and shows them."""
    done = {}
    for path in sorted(out.glob("*/result.json")):
        values = json.loads(path.read_text())
        done[Cell(**values["cell"])] = values["losses"]
    rows: list[dict[str, Any]] = []
    for cell, losses in done.items():
        plain = done.get(Cell("none", cell.wrong, cell.levels, cell.steps, cell.seed))
        for name, (mean, low, high) in measures(losses, plain).items():
            rows.append({"cell": cell.name, "measure": name, "mean": mean, "95 %": [low, high]})
            print(f"{cell.name:32} {name:8} {mean:+.4f} ({low:+.4f} to {high:+.4f})")
    for line in over_seeds(done):
        print(line)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def over_seeds(done: dict[Cell, Any]) -> Iterator[str]:
    """Yields a line for each measure of each arm: mean and interval over the seeds."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for cell, losses in done.items():
        plain = done.get(Cell("none", cell.wrong, cell.levels, cell.steps, cell.seed))
        for name, (mean, _, _) in measures(losses, plain).items():
            key = (cell.arm, cell.wrong, cell.levels, cell.steps, name)
            groups.setdefault(key, []).append(mean)
    for key, means in sorted(groups.items()):
        if len(means) > 1:
            half = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
            arm, wrong, levels, steps, name = key
            yield (
                f"{arm} wrong {wrong:g} N {levels} steps {steps}: {name} {np.mean(means):+.4f} "
                f"± {half:.4f} over {len(means)} seeds"
            )
