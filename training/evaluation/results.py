"""The results of an evaluation: a table for the terminal, Markdown, and JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from schemas.storage import commit_text
from schemas.terminal import Console
from training.evaluation.predictions import Matched
from training.evaluation.protocol import Benchmark
from training.evaluation.report import mean_weights, render, section
from training.evaluation.scoring import Scored

COLUMNS = ("benchmark", "score", "95 % interval", "exchanged", "AlignGPT-7B", "AlignGPT-13B")


@dataclass(slots=True, kw_only=True)
class BenchmarkResult:
    """One benchmark of an evaluation."""

    benchmark: Benchmark
    folder: Path
    """With its answers."""
    matched: Matched | None = None
    scored: Scored | None = None
    """None where labels are not public, or no judge was asked."""
    exchanged: Scored | None = None
    """With exchanged pictures, where they were asked about."""
    submission: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what results.json holds of it."""
        of_scored = None if self.scored is None else self.scored.to_json()
        of_exchanged = None if self.exchanged is None else self.exchanged.to_json()
        return {
            "right": of_scored,
            "exchanged": of_exchanged,
            "submission": None if self.submission is None else self.submission.name,
        }

    def cells(self) -> list[str]:
        """Returns its row of the table."""
        scored, other = self.scored, self.exchanged
        name = self.benchmark.title
        if scored is None:
            what = "not judged" if self.benchmark.is_judged else "server only"
            shown = [what, "", ""]
        else:
            low, high = scored.interval
            name += " *" if scored.notes else ""
            shown = [
                f"{scored.score:.1f}",
                f"{low:.1f} to {high:.1f}",
                "" if other is None else f"{other.score:.1f}",
            ]
        paper = self.benchmark.paper
        return [name, *shown, *(str(paper.get(size, "")) for size in ("7B", "13B"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All benchmarks of an evaluation."""

    model: str
    protocol: str
    precision: str
    benchmarks: Sequence[BenchmarkResult]

    @property
    def notes(self) -> list[str]:
        """What makes scores other than the published ones, benchmark by benchmark."""
        return [
            f"{result.benchmark.title}: {note}"
            for result in self.benchmarks
            if result.scored is not None
            for note in result.scored.notes
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns what results.json holds."""
        return {
            "model": self.model,
            "protocol": self.protocol,
            "precision": self.precision,
            "benchmarks": {r.benchmark.name: r.to_json() for r in self.benchmarks},
        }

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        head = [" | ".join(COLUMNS), " | ".join(["---", *["---:"] * (len(COLUMNS) - 1)])]
        rows = [" | ".join(_escaped(cell) for cell in result.cells()) for result in self.benchmarks]
        lines = [f"| {line} |" for line in (*head, *rows)]
        lines += ["", *(f"\\* {note}" + "  " for note in self.notes)]
        return "\n".join([f"# {self.model}", "", *lines]) + "\n"


def _escaped(cell: str) -> str:
    """Returns a cell in which Markdown finds no mark of its own."""
    return cell.replace("*", r"\*").replace("|", r"\|")


def print_results(console: Console, results: Results, out: str) -> None:
    """Prints the table and where more is."""
    title = Text(f"{results.model}, protocol {results.protocol}")
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for result in results.benchmarks:
        table.add_row(*result.cells())
    console.print(table)
    for note in results.notes:
        console.print(f"* {note}", style="yellow", markup=False)
    for result in results.benchmarks:
        if result.scored is None and result.submission is not None:
            console.print(f"for its server: {result.submission}", markup=False, soft_wrap=True)
    console.print(f"report: {Path(out) / 'report.html'}", markup=False, soft_wrap=True)


def write_results(out: str, results: Results) -> None:
    """Writes results.json, results.md and report.html."""
    text = json.dumps(results.to_json(), indent=2, ensure_ascii=False)
    commit_text(str(Path(out) / "results.json"), text + "\n")
    commit_text(str(Path(out) / "results.md"), results.markdown())
    commit_text(str(Path(out) / "report.html"), page(results))


def page(results: Results) -> str:
    """Returns report.html."""
    sections, weights = [], {}
    for result in results.benchmarks:
        answers = result.matched.answers if result.matched is not None else []
        if result.scored is not None:
            scored = result.scored
            sections.append(section(result.benchmark, answers, scored.parts, scored.notes))
        mean = mean_weights(answers)
        if mean is not None:
            weights[result.benchmark.title] = mean
    title = f"{results.model} (protocol {results.protocol}, {results.precision})"
    rows = [result.cells() for result in results.benchmarks]
    return render(title, COLUMNS, rows, sections, weights)
