"""The command `evaluate --benchmarks`: checks, answers, scores and reports. Read this first."""

import os
from collections.abc import Sequence
from pathlib import Path

from schemas.errors import ConfigError
from schemas.storage import commit_file
from schemas.terminal import Console
from training.engine.launch import launch
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.commands import Evaluate
from training.evaluation.files import Folder
from training.evaluation.generate import Decoding, chosen_precision, load_answerer
from training.evaluation.judge import check_judge, judge_answers, judge_for
from training.evaluation.judging import JudgedBenchmark
from training.evaluation.predictions import Matched, match, read_answers
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Question
from training.evaluation.results import BenchmarkResult, Results, print_results, write_results
from training.evaluation.runs import (
    Pictures,
    Task,
    answer_task,
    check_pictures,
    exchange,
    finish_task,
    image_mode,
    locked,
    model_identity,
)
from training.evaluation.scoring import Scored, score_answers
from training.parts import check_model_folder


def evaluate_benchmarks(command: Evaluate, arguments: Sequence[str]) -> int:
    """Returns the exit status; results are printed, and written to the folder `out`.

    Args:
        command: what is wanted.
        arguments: of the command line, which further processes run.

    Raises:
        ConfigError: before the model is loaded, if a file of a benchmark is missing or wrong, or
            the folder holds another evaluation.
    """
    check_model_folder(Path(command.model))
    tasks = [task for chosen in chosen_benchmarks(command) for task in tasks_of(command, chosen)]
    if is_worker():
        answer(command, [task for task in tasks if not task.is_answered()])
        return 0
    with locked(Path(command.out)):
        waiting = [task for task in tasks if not task.is_answered()]
        for task in waiting:
            task.progress().read()
        if waiting and command.processes > 1:
            status = launch(command.processes, arguments)
            if status:
                return status
        elif waiting:
            answer(command, waiting)
        for task in waiting:
            finish_task(task, model_name(command.model))
        report(command, tasks)
    return 0


def is_worker() -> bool:
    """Returns whether this is one of several processes, which only answer."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def chosen_benchmarks(command: Evaluate) -> list[Benchmark]:
    """Returns the benchmarks by name, in the order given; `all` are all."""
    if "all" in command.benchmarks:
        return list(benchmarks().values())
    return list({name: benchmark(name) for name in command.benchmarks}.values())


def tasks_of(command: Evaluate, chosen: Benchmark) -> list[Task]:
    """Returns what is to be answered of a benchmark, its files checked.

    Raises:
        ConfigError: if one is missing or wrong.
    """
    chosen.check_split(command.split)
    folder = chosen.folder(command.data[0])
    questions = chosen.read(folder, command.split, "ask")
    if command.limit:
        questions = questions[: command.limit]
    check_pictures(chosen, questions)
    if isinstance(chosen, JudgedBenchmark):
        check_judge(chosen, folder, command.judge)
    model = {
        "model": model_identity(command.model),
        "precision": chosen_precision(command.precision),
        "chat_template": command.chat_template,
    }
    decoding = Decoding(
        max_new_tokens=chosen.max_new_tokens,
        image_mode=image_mode(chosen, command.protocol),
        batch_size=command.batch_size,
    )
    asked: dict[Pictures, Sequence[Question]] = {"right": questions}
    if command.control == "exchanged":
        asked["exchanged"] = exchange(questions)
        if not asked["exchanged"]:
            raise ConfigError(
                f"{chosen.title}: all {len(questions)} questions have one picture or none: there "
                "is none to exchange: leave --control out, or ask more (--limit)"
            )
    return [
        Task(
            benchmark=chosen,
            questions=of_pictures,
            pictures=pictures,
            folder=Path(command.out) / chosen.name,
            decoding=decoding,
            model=model,
        )
        for pictures, of_pictures in asked.items()
    ]


def answer(command: Evaluate, tasks: Sequence[Task]) -> None:
    """Answers this process's share of all tasks with one model."""
    if not tasks:
        return
    answerer = load_answerer(command.model, command.precision, command.chat_template)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for task in tasks:
        answer_task(task, answerer, rank, processes)


def report(command: Evaluate, tasks: Sequence[Task]) -> None:
    """Judges and scores the answers, prints the table and writes the results."""
    found: dict[str, BenchmarkResult] = {}
    own = {task.benchmark.name: task.questions for task in tasks if task.pictures == "right"}
    for task in tasks:
        result = found.setdefault(
            task.benchmark.name, BenchmarkResult(benchmark=task.benchmark, folder=task.folder)
        )
        matched = match(task.benchmark, own[task.benchmark.name], read_answers(str(task.path)))
        judge_if_wanted(command, task, matched)
        scored = scored_if_possible(task.benchmark, matched)
        if task.pictures == "exchanged":
            result.exchanged = scored
            continue
        result.scored = scored
        result.matched = matched
        result.submission = write_submission(command, task, matched)
    results = Results(
        model=model_name(command.model),
        protocol=command.protocol,
        precision=chosen_precision(command.precision),
        benchmarks=list(found.values()),
    )
    write_results(command.out, results)
    print_results(Console(highlight=False), results, command.out)


def judge_if_wanted(command: Evaluate, task: Task, matched: Matched) -> None:
    """Gives the answers what a judge makes of them, where one is configured.

    Answers to exchanged pictures are judged as those to the right ones, beside what the right
    picture shows: each has its price, its replies and its file.
    """
    chosen = task.benchmark
    if not isinstance(chosen, JudgedBenchmark) or not command.judge.url:
        return
    folder: Folder = chosen.folder(command.data[0])
    prefix = "" if task.pictures == "right" else f"{task.pictures}_"
    judge = judge_for(chosen, command.judge, task.folder / f"{prefix}judge")
    judge_answers(chosen, matched.answers, folder, judge, command.judge, is_agreed=command.yes)
    with commit_file(str(task.folder / f"{prefix}{chosen.judge_file}")) as file:
        file.write(chosen.record(matched.answers, judge.model))


def scored_if_possible(chosen: Benchmark, matched: Matched) -> Scored | None:
    """Returns the result; None where labels are not public, or no judge was asked."""
    for one in matched.answers:
        chosen.grade(one)
    if not any(one.score is not None for one in matched.answers):
        return None
    return score_answers(chosen, matched)


def write_submission(command: Evaluate, task: Task, matched: Matched) -> Path | None:
    """Writes the server's file beside the answers; returns where, None if there is no server."""
    chosen, answers = task.benchmark, matched.answers
    if not chosen.has_server:
        return None
    if not command.limit:
        wanted = chosen.read(chosen.folder(command.data[0]), command.split, "submit")
        answers = match(chosen, wanted, read_answers(str(task.path))).answers
        for one in answers:
            chosen.grade(one)
    submission = chosen.submission(chosen.relevant(answers))
    if submission is None:
        return None
    path = task.folder / submission.name
    with commit_file(str(path)) as file:
        file.write(submission.content)
    return path


def model_name(folder: str) -> str:
    """Returns what a model is called in answer files: its folder, or its run's."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "model" else path.name
