"""Two models' answers to the same questions, paired: is the difference more than chance?"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy.stats import binomtest

from schemas.errors import ConfigError
from schemas.terminal import Console
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.commands import Compare
from training.evaluation.judging import JudgedBenchmark
from training.evaluation.protocol import Benchmark
from training.evaluation.scoring import Scored, score_files
from training.evaluation.tally import draw, quantiles

ANSWERS = "predictions.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One benchmark, two models."""

    benchmark: Benchmark
    first: float
    second: float
    difference: float
    """Second minus first, over what both answered."""
    interval: tuple[float, float]
    """95 % of the difference, of the bootstrap over pictures, both models' drawn together."""
    only_first: int | None
    """Right by the first model alone; None where answers are not right or wrong."""
    only_second: int | None
    p_value: float | None
    """Of McNemar's exact test."""

    def to_json(self) -> dict[str, Any]:
        """Returns what `--json` prints of it."""
        return {
            "first": self.first,
            "second": self.second,
            "difference": self.difference,
            "interval": list(self.interval),
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "p_value": self.p_value,
        }


def compared(first: Scored, second: Scored) -> Comparison:
    """Returns the comparison of two results of one benchmark.

    Raises:
        ConfigError: if they have no question in common.
    """
    chosen = first.benchmark
    one, other = chosen.tally(first.answers), chosen.tally(second.answers)
    places = {unit: place for place, unit in enumerate(other.units)}
    common = [unit for unit in one.units if unit in places]
    if not common:
        raise ConfigError(f"{chosen.title}: the two have answered no question in common")
    if one.sums.shape[1] != other.sums.shape[1]:
        raise ConfigError(f"{chosen.title}: the two have answered different parts of it")
    of_one = {unit: place for place, unit in enumerate(one.units)}
    left = one.sums[[of_one[unit] for unit in common]]
    right = other.sums[[places[unit] for unit in common]]
    width = left.shape[1]
    drawn = draw(np.hstack([left, right]))
    differences = other.headline(drawn[:, width:]) - one.headline(drawn[:, :width])
    total = other.headline(right.sum(axis=0)) - one.headline(left.sum(axis=0))
    only_first, only_second, p_value = mcnemar(first, second)
    return Comparison(
        benchmark=chosen,
        first=first.score,
        second=second.score,
        difference=float(total),
        interval=quantiles(differences),
        only_first=only_first,
        only_second=only_second,
        p_value=p_value,
    )


def mcnemar(first: Scored, second: Scored) -> tuple[int | None, int | None, float | None]:
    """Returns how many only one model has right, and the exact test's two-sided p-value.

    Source: McNemar 1947; exact, as the binomial test of the pairs that differ.
    """
    if not first.benchmark.is_binary:
        return None, None, None
    one, other = first.benchmark.paired(first.answers), second.benchmark.paired(second.answers)
    pairs = [(one[key], other[key]) for key in one.keys() & other.keys()]
    only_first = sum(a > b for a, b in pairs)
    only_second = sum(b > a for a, b in pairs)
    if only_first + only_second == 0:
        return 0, 0, 1.0
    test = binomtest(only_first, only_first + only_second, 0.5)
    return only_first, only_second, float(test.pvalue)


def print_comparison(command: Compare) -> None:
    """Prints the comparison of every benchmark that both have answered.

    Raises:
        ConfigError: if there is none that can be scored. Of several, those that cannot, as their
            answers are not public, are named and left out.
    """
    found: list[Comparison] = []
    left_out: list[ConfigError] = []
    for chosen, paths in pairs(command):
        try:
            chosen.check_split(command.split)
            first, second = (score_files(chosen, command.data, [p], command.split) for p in paths)
            found.append(compared(first, second))
        except ConfigError as error:
            left_out.append(error)
    if left_out and not found:
        raise left_out[0]
    for reason in left_out:
        Console(stderr=True, highlight=False).print(f"left out: {reason}", markup=False)
    if command.json:
        value = {one.benchmark.name: one.to_json() for one in found}
        print(json.dumps(value))  # noqa: T201
        return
    title = f"{command.second} against {command.first}"
    # Eight columns, whose words are to stand whole in 80 letters.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    head = ("benchmark", "first", "second", "difference", "95 % interval", "only first right")
    for number, name in enumerate((*head, "only second right", "p (McNemar)")):
        longest = max(map(len, name.split()))
        table.add_column(name, justify="right" if number else "left", min_width=longest)
    for one in found:
        table.add_row(*cells(one))
    Console(highlight=False).print(table)


def cells(one: Comparison) -> Sequence[str]:
    """Returns a comparison's row of the table."""
    low, high = one.interval
    counts = ["" if n is None else str(n) for n in (one.only_first, one.only_second)]
    return [
        one.benchmark.title,
        f"{one.first:.2f}",
        f"{one.second:.2f}",
        f"{one.difference:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        *counts,
        "" if one.p_value is None else f"{one.p_value:.2g}",
    ]


def pairs(command: Compare) -> list[tuple[Benchmark, tuple[str, str]]]:
    """Returns the benchmarks that both sides have, with their answer files."""
    first, second = Path(command.first), Path(command.second)
    if first.is_file() and second.is_file():
        if command.benchmark is None:
            raise ConfigError("of which benchmark are these answer files? Say --benchmark pope")
        return [(benchmark(command.benchmark), (command.first, command.second))]
    wanted = benchmarks().values() if not command.benchmark else [benchmark(command.benchmark)]
    found = []
    for chosen in wanted:
        name = chosen.judge_file if isinstance(chosen, JudgedBenchmark) else ANSWERS
        paths = [side / chosen.name / name for side in (first, second)]
        if all(path.is_file() for path in paths):
            found.append((chosen, (str(paths[0]), str(paths[1]))))
    if not found:
        raise ConfigError(
            f"{first} and {second} have no benchmark in common: give two folders that "
            "`aligngpt-train evaluate --benchmarks … --out` wrote, or two answer files"
        )
    return found
