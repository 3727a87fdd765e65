"""Answer files: JSONL as LLaVA's scripts write it, read from anyone and written by us."""

import json
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.storage import commit_file
from training.evaluation.files import numbered_lines
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer, Question

NAMED = 20
"""Ids that a message or a result names of a longer list."""


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """What an answer file holds."""

    path: str
    rows: list[dict[str, Any]]
    whole: Any
    """The one object of a JSON file; None of JSONL."""
    bad_lines: list[int] = field(default_factory=list)
    """Lines that are no JSON: the last, where writing was broken off."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Answers in the order of the questions, and what did not fit."""

    answers: list[Answer]
    duplicates: list[str]
    """Ids answered more often than asked; the last answer counts, as in the published scripts, or
    each where a script counts rows."""
    missing: list[str]
    """Ids asked and not answered."""
    extra: list[str]
    """Ids answered and not asked."""


def read_answers(path: str) -> AnswerFile:
    """Returns the rows of an answer file, those that are no JSON counted.

    Raises:
        ConfigError: if there is no such file, or nothing in it.
    """
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a folder: give its file of answers with --predictions")
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}: give the answers with --predictions")
    rows: list[dict[str, Any]] = []
    bad_lines = []
    whole = _whole(path)
    if whole is None:
        for number, line in numbered_lines(Path(path)):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                bad_lines.append(number)
                continue
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad_lines.append(number)
    elif isinstance(whole, list):
        rows = [row for row in whole if isinstance(row, dict)]
    if not rows and not isinstance(whole, dict):
        raise ConfigError(f"{path} holds no answers: JSONL with question_id and text is expected")
    return AnswerFile(path, rows, whole if isinstance(whole, dict) else None, bad_lines)


def _whole(path: str) -> Any:
    """Returns what a JSON file of more than one line holds; None if it is JSONL."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    is_row = isinstance(value, dict) and "question_id" in value
    return None if is_row else value


def match(benchmark: Benchmark, questions: Sequence[Question], file: AnswerFile) -> Matched:
    """Returns the questions with their answers.

    Raises:
        ConfigError: if a row has no id or text, or no row fits any question.
    """
    rows = file.rows or _rows_of_object(file)
    waiting: dict[Hashable, deque[Question]] = defaultdict(deque)
    for question in questions:
        key = benchmark.key(question.question_id, question.prompt_in_answers)
        waiting[key].append(question)
    by_key: dict[Hashable, list[dict[str, Any]]] = defaultdict(list)
    extra: list[str] = []
    for number, row in enumerate(rows, start=1):
        _check_row(row, number, file.path)
        key = benchmark.key(row["question_id"], row.get("prompt"))
        if key in waiting:
            by_key[key].append(row)
        else:
            extra.append(str(row["question_id"]))
    if not by_key:
        raise ConfigError(_nothing_fits(benchmark, questions, rows, file.path))
    duplicates = [
        str(found[-1]["question_id"])
        for key, found in by_key.items()
        if len(found) > len(waiting[key])
    ]
    missing = [str(q.question_id) for key, of in waiting.items() if key not in by_key for q in of]
    if benchmark.scores_rows:
        answers = _by_row(benchmark, waiting, rows)
    else:
        answers = _by_question(benchmark, questions, by_key)
    return Matched(answers, duplicates, missing, extra)


def _nothing_fits(
    benchmark: Benchmark, questions: Sequence[Question], rows: Sequence[dict[str, Any]], path: str
) -> str:
    """Returns what is wrong with answers of which none fits a question."""
    said = f"no row of {path} answers a question of {benchmark.title}"
    known = {str(question.question_id) for question in questions}
    if any(str(row["question_id"]) in known for row in rows):
        return (
            f"{said}: ids agree, but {benchmark.title} has several questions under one id, and the "
            "rows' prompts, by which they are told apart, are missing or of other questions"
        )
    shown = ", ".join(str(row["question_id"]) for row in rows[:3])
    asked = ", ".join(str(question.question_id) for question in questions[:3])
    return (
        f"{said}: its ids are {shown}, the benchmark's {asked}. "
        "Are they of another split or benchmark?"
    )


def _by_question(
    benchmark: Benchmark,
    questions: Sequence[Question],
    by_key: dict[Hashable, list[dict[str, Any]]],
) -> list[Answer]:
    """Returns an answer for each question, from the last row of its key."""
    answers = []
    for question in questions:
        found = by_key.get(benchmark.key(question.question_id, question.prompt_in_answers))
        answers.append(_answer(question, found[-1] if found else None))
    return answers


def _by_row(
    benchmark: Benchmark,
    waiting: dict[Hashable, deque[Question]],
    rows: Sequence[dict[str, Any]],
) -> list[Answer]:
    """Returns an answer for each row that has a question, in the order of the rows."""
    answers = []
    for row in rows:
        asked = waiting.get(benchmark.key(row["question_id"], row.get("prompt")))
        if asked:
            answers.append(_answer(asked[0], row))
    return answers


def _answer(question: Question, row: dict[str, Any] | None) -> Answer:
    if row is None:
        return Answer(question=question, text=None)
    return Answer(question=question, text=row["text"], prompt=row.get("prompt"), row=row)


def _rows_of_object(file: AnswerFile) -> list[dict[str, Any]]:
    """Returns the rows of an object from id to text, as MM-Vet's result files are."""
    return [{"question_id": key, "text": text} for key, text in (file.whole or {}).items()]


def _check_row(row: dict[str, Any], number: int, path: str) -> None:
    absent = [name for name in ("question_id", "text") if name not in row]
    if absent or not isinstance(row.get("text"), str):
        raise ConfigError(
            f"{path}, row {number} has no {' and no '.join(absent) or 'text that is a string'}: "
            "rows are {question_id, prompt, text, …}, as LLaVA's scripts and `aligngpt-train "
            "evaluate` write them"
        )


def write_answers(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as JSONL, whole or not at all."""
    with commit_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
