"""Results as they are shown at the terminal."""

import json

from rich.console import Console
from rich.table import Table

from schemas.storage import commit_file
from training.evaluation.catalogue import benchmark
from training.evaluation.commands import Score
from training.evaluation.predictions import match, read_answers
from training.evaluation.protocol import Benchmark
from training.evaluation.scoring import Scored, score_files


def print_score(command: Score) -> None:
    """Prints the score of an answer file, and writes the server's file if one is wanted.

    Raises:
        ConfigError: if a file is missing or wrong, or there is nothing to compare with.
    """
    chosen = benchmark(command.benchmark)
    if command.submission is not None:
        write_submission(chosen, command)
        return
    scored = score_files(chosen, command.data, command.predictions, command.split)
    if command.json:
        print(json.dumps(scored.to_json(), ensure_ascii=False))  # noqa: T201
        return
    print_table(scored)


def write_submission(chosen: Benchmark, command: Score) -> None:
    """Writes what the benchmark's server takes, whether or not labels are public."""
    questions = chosen.read(chosen.folder(command.data), command.split, "ask")
    matched = match(chosen, questions, read_answers(command.predictions[0]))
    answers = chosen.relevant(matched.answers)
    for answer in answers:
        chosen.grade(answer)
    submission = chosen.submission(answers)
    console = Console()
    if submission is None:
        console.print(f"{chosen.title} has no server: it is scored here", highlight=False)
        return
    assert command.submission is not None
    with commit_file(command.submission) as file:
        file.write(submission.content)
    console.print(f"written: {command.submission}", soft_wrap=True, highlight=False)


def print_table(scored: Scored) -> None:
    """Prints a result, and what must be known of it."""
    chosen = scored.benchmark
    table = Table(title=f"{chosen.title}: {chosen.metric}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("score", f"[bold]{scored.score:.2f}")
    table.add_row("95 % interval", f"{scored.interval[0]:.2f} to {scored.interval[1]:.2f}")
    for name, value in scored.parts.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:g}" if isinstance(value, int) else f"{value:.4f}")
    for size, number in chosen.paper.items():
        table.add_row(f"AlignGPT-{size}, the paper", str(number))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"as {chosen.script}", markup=False)
    for note in scored.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
