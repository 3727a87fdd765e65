"""The score of an answer file: one benchmark's numbers, and what was wrong with the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ConfigError
from training.evaluation.judging import JudgedBenchmark, add_judgement
from training.evaluation.predictions import NAMED, AnswerFile, Matched, match, read_answers
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer, Question


@dataclass(frozen=True, slots=True)
class Scored:
    """A benchmark's result."""

    benchmark: Benchmark
    answers: list[Answer]
    score: float
    """The headline, as the script gives it."""
    exact: float
    """Before the script rounds it."""
    interval: tuple[float, float]
    """95 %, of the bootstrap over pictures."""
    parts: dict[str, Any]
    matched: Matched
    bad_lines: list[int]
    notes: list[str]
    """What a reader must know to compare the number."""

    def to_json(self) -> dict[str, Any]:
        """Returns the one object that `score --json` prints."""
        benchmark, matched = self.benchmark, self.matched
        return {
            "benchmark": benchmark.name,
            "score": self.score,
            "metric": benchmark.metric,
            "script": benchmark.script,
            "exact": self.exact,
            "interval": list(self.interval),
            **self.parts,
            "asked": len(self.answers),
            "answered": sum(answer.text is not None for answer in self.answers),
            **_counted("duplicates", matched.duplicates),
            **_counted("missing", matched.missing),
            **_counted("extra", matched.extra),
            "bad_lines": len(self.bad_lines),
            "paper": dict(benchmark.paper),
            "notes": self.notes,
        }


def _counted(name: str, ids: Sequence[str]) -> dict[str, Any]:
    return {name: len(ids), f"{name}_ids": list(ids[:NAMED])}


def score_files(
    benchmark: Benchmark, data: str, paths: Sequence[str], split: str | None = None
) -> Scored:
    """Returns the result of answer files.

    Args:
        benchmark: whose answers they are.
        data: the folder with its files.
        paths: one answer file; of a judged benchmark also several of the judge's, one a run.
        split: another than the published one.

    Raises:
        ConfigError: if a file is missing or wrong, or there is nothing to compare with.
    """
    files = [read_answers(path) for path in paths]
    questions = benchmark.read(benchmark.folder(data), split, "score")
    if isinstance(benchmark, JudgedBenchmark):
        return _score_judged(benchmark, questions, files)
    if len(files) != 1:
        raise ConfigError(f"{benchmark.title} takes one answer file, got {len(files)}")
    matched = match(benchmark, questions, files[0])
    return score_answers(benchmark, matched, files[0].bad_lines)


def score_answers(benchmark: Benchmark, matched: Matched, bad_lines: Sequence[int] = ()) -> Scored:
    """Returns the result of matched answers.

    Raises:
        ConfigError: if the published script refuses them, or no label is public.
    """
    answers = benchmark.relevant(matched.answers)
    asked = {str(answer.question.question_id) for answer in answers}
    missing = [name for name in matched.missing if name in asked]
    matched = Matched(answers, matched.duplicates, missing, matched.extra)
    benchmark.check(answers)
    for answer in answers:
        benchmark.grade(answer)
    if not any(answer.score is not None for answer in answers):
        raise ConfigError(_nothing_to_score(benchmark))
    tally = benchmark.tally(answers)
    return Scored(
        benchmark=benchmark,
        answers=answers,
        score=benchmark.score(answers),
        exact=tally.score(),
        interval=tally.interval(),
        parts=benchmark.parts(answers),
        matched=matched,
        bad_lines=list(bad_lines),
        notes=notes_on(benchmark, matched, bad_lines),
    )


def _nothing_to_score(benchmark: Benchmark) -> str:
    if benchmark.is_judged:
        return (
            f"{benchmark.title} is scored by a judge: give one with --judge.url and --judge.model, "
            "or the judge's own file (LLaVA's reviews, MM-Vet's grades) as --predictions"
        )
    return (
        f"the answers of this split of {benchmark.title} are not public, so there is nothing to "
        "compare with: `--submission FILE` writes what its server takes"
    )


def notes_on(benchmark: Benchmark, matched: Matched, bad_lines: Sequence[int]) -> list[str]:
    """Returns what makes a number another than the published one."""
    notes = []
    count = benchmark.published(matched.answers)
    if count != benchmark.questions and not benchmark.scores_rows:
        notes.append(
            f"{count:,} questions, where the published set has {benchmark.questions:,}: the score "
            "cannot be compared with published ones"
        )
    counting = "every row counts" if benchmark.scores_rows else "the last counts"
    for what, ids in (
        ("not answered", matched.missing),
        (f"answered more than once, {counting}", matched.duplicates),
        ("answered that were not asked", matched.extra),
    ):
        if ids:
            more = ", …" if len(ids) > NAMED else ""
            notes.append(f"{len(ids)} {what}: {', '.join(ids[:NAMED])}{more}")
    unparsed = sum(answer.unparsed for answer in matched.answers)
    if unparsed:
        notes.append(f"{unparsed} of the judge's replies held no score that could be read")
    if bad_lines:
        lines = ", ".join(map(str, bad_lines[:NAMED]))
        notes.append(f"{len(bad_lines)} lines of the answer file are no JSON: {lines}")
    return notes


def _score_judged(
    benchmark: JudgedBenchmark, questions: Sequence[Question], files: Sequence[AnswerFile]
) -> Scored:
    """Returns the result of the judge's own files, one or several runs."""
    answers = [Answer(question=question, text=None) for question in questions]
    extra: list[str] = []
    for file in files:
        recorded = benchmark.recorded(file.rows or file.whole)
        if recorded is None:
            raise ConfigError(_nothing_to_score(benchmark))
        for answer in answers:
            number = str(benchmark.key(answer.question.question_id, None))
            for judgement in recorded.pop(number, []):
                add_judgement(answer, judgement)
            answer.text = "" if answer.judged else None
        extra += list(recorded)
    missing = [str(a.question.question_id) for a in answers if not a.judged]
    if len(missing) == len(answers):
        raise ConfigError(f"no row of {files[0].path} is of a question of {benchmark.title}")
    matched = Matched(answers, [], missing, extra)
    return score_answers(benchmark, matched, [n for file in files for n in file.bad_lines])
