"""Results as they are shown at the terminal."""

import json
from pathlib import Path

from rich.table import Table

from schemas.errors import ConfigError
from schemas.storage import commit_file
from schemas.terminal import Console
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.commands import Compare, Evaluate, Score
from training.evaluation.judge import judge_answers, judge_for
from training.evaluation.judging import JudgedBenchmark
from training.evaluation.predictions import match, read_answers
from training.evaluation.protocol import Benchmark
from training.evaluation.scoring import Scored, score_answers, score_files


def show(command: Score | Compare | Evaluate) -> None:
    """Does what needs no model: scores, compares, or lists the benchmarks."""
    if isinstance(command, Evaluate):
        print_list()
    elif isinstance(command, Compare):
        from training.evaluation.compare import print_comparison

        print_comparison(command)
    else:
        print_score(command)


def print_list() -> None:
    """Prints every benchmark with its files, split, metric and source."""
    console = Console(highlight=False)
    for chosen in benchmarks().values():
        console.print(f"[bold]{chosen.name}[/bold]  {chosen.title}")
        for what, text in (
            ("split", f"{chosen.split}; {chosen.questions:,} questions"),
            ("metric", chosen.metric),
            ("script", chosen.script),
            ("folder", " or ".join(f"DATA/{name}/" for name in chosen.folders)),
            *(("files", line) for line in chosen.layout),
            ("from", chosen.source),
            ("paper", ", ".join(f"{size} {number}" for size, number in chosen.paper.items())),
        ):
            console.print(f"  {what:7} {text}", markup=False)
        console.print()


def print_score(command: Score) -> None:
    """Prints the score of an answer file, and writes the server's file if one is wanted.

    Raises:
        ConfigError: if a file is missing or wrong, or there is nothing to compare with.
    """
    chosen = benchmark(command.benchmark)
    chosen.check_split(command.split)
    if command.submission is not None:
        write_submission(chosen, command)
        return
    scored = judged(chosen, command) if command.judge.url else None
    if scored is None:
        scored = score_files(chosen, command.data, command.predictions, command.split)
    if command.json:
        print(json.dumps(scored.to_json(), ensure_ascii=False))  # noqa: T201
        return
    print_table(scored)


def judged(chosen: Benchmark, command: Score) -> Scored | None:
    """Returns the result of answers that a judge is asked about; None if none is to judge them.

    Raises:
        ConfigError: if a file is wrong, the price not agreed to, or the judge does not answer.
    """
    if not isinstance(chosen, JudgedBenchmark):
        return None
    folder = chosen.folder(command.data)
    questions = chosen.read(folder, command.split, "score")
    file = read_answers(command.predictions[0])
    matched = match(chosen, questions, file)
    kept = Path(command.predictions[0]).parent / "judge"
    judge = judge_for(chosen, command.judge, kept)
    judge_answers(chosen, matched.answers, folder, judge, command.judge, is_agreed=command.yes)
    return score_answers(chosen, matched, file.bad_lines)


def write_submission(chosen: Benchmark, command: Score) -> None:
    """Writes what the benchmark's server takes, whether or not labels are public.

    Raises:
        ConfigError: if a file is missing or wrong, or the benchmark has no server.
    """
    if not chosen.has_server:
        raise ConfigError(f"{chosen.title} has no server: score it here, without --submission")
    questions = chosen.read(chosen.folder(command.data), command.split, "submit")
    matched = match(chosen, questions, read_answers(command.predictions[0]))
    answers = chosen.relevant(matched.answers)
    for answer in answers:
        chosen.grade(answer)
    submission = chosen.submission(answers)
    assert submission is not None and command.submission is not None
    with commit_file(command.submission) as file:
        file.write(submission.content)
    Console().print(f"written: {command.submission}", soft_wrap=True, highlight=False)


def print_table(scored: Scored) -> None:
    """Prints a result, and what must be known of it."""
    chosen = scored.benchmark
    title = f"{chosen.title}: {chosen.metric}"
    table = Table(title=title, title_justify="left", show_header=False)
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
