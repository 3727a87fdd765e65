"""One evaluation: what is asked of a model, answered, written and scored, in a folder of its own.

OUT/results.json, results.md, report.html
OUT/BENCHMARK/predictions.jsonl      the answers, as LLaVA's files and more
OUT/BENCHMARK/exchanged.jsonl        the same questions about other pictures
OUT/BENCHMARK/progress/              batches answered so far, until all are
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from schemas.errors import ConfigError
from schemas.progress import RunProgress
from training.evaluation.control import Pictured, exchanged
from training.evaluation.generate import (
    Answerer,
    Decoding,
    Progress,
    Reply,
    Request,
    answer_batches,
    plan_batches,
)
from training.evaluation.predictions import write_answers
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer, Question

Pictures = Literal["right", "exchanged"]
Protocol = Literal["aligngpt", "llava-1.2"]
FILES: Mapping[Pictures, str] = {"right": "predictions.jsonl", "exchanged": "exchanged.jsonl"}
SAMPLED_BYTES = 1 << 20
"""Of a weight file's beginning, middle and end, which tell models apart."""
ANSWER_ID_LENGTH = 22
NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A benchmark's questions, to be asked about their own or exchanged pictures."""

    benchmark: Benchmark
    questions: Sequence[Question]
    pictures: Pictures
    folder: Path
    decoding: Decoding
    model: Mapping[str, Any]
    """What else decides the answers: the model's identity, precision, chat template."""

    @property
    def path(self) -> Path:
        """Where the answers go."""
        return self.folder / FILES[self.pictures]

    @property
    def fingerprint(self) -> str:
        """Of all that decides the answers."""
        asked = [
            (str(q.question_id), q.prompt, None if q.picture is None else q.picture.name)
            for q in self.questions
        ]
        decoding = self.decoding
        made_by = [decoding.max_new_tokens, decoding.image_mode, decoding.batch_size]
        value = [asked, made_by, dict(self.model), self.pictures]
        return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()

    @property
    def stamp(self) -> Path:
        """The file that says what made the answers."""
        return self.folder / f".{self.pictures}.fingerprint"

    def is_answered(self) -> bool:
        """Returns whether the answers are there already.

        Raises:
            ConfigError: if answers are there that were made otherwise, or by someone else.
        """
        if not self.path.exists():
            return False
        found = self.stamp.read_text() if self.stamp.exists() else ""
        if found != self.fingerprint:
            raise ConfigError(
                f"{self.path} was made otherwise (another model, other questions or settings): use "
                "another --out"
            )
        return True

    def progress(self) -> Progress:
        """Returns the batches answered so far."""
        return Progress(self.folder / f"progress_{self.pictures}", self.fingerprint)

    def requests(self) -> list[Request]:
        """Returns what the model is asked."""
        return [
            Request(number=number, prompt=question.prompt, picture=question.picture)
            for number, question in enumerate(self.questions)
        ]


def image_mode(benchmark: Benchmark, protocol: Protocol) -> str:
    """Returns how pictures become square: as in the paper's code, or always padded."""
    return benchmark.image_mode if protocol == "aligngpt" else "pad"


def check_pictures(benchmark: Benchmark, questions: Sequence[Question]) -> None:
    """Raises ConfigError if pictures are not where they are expected."""
    pictures = {q.picture.path: q.picture for q in questions if q.picture is not None}
    absent = [path for path, picture in pictures.items() if not picture.is_there()]
    if absent:
        shown = ", ".join(absent[:NAMED])
        raise ConfigError(
            f"{benchmark.title}: {len(absent)} of {len(pictures)} pictures are not there: {shown}"
            f"{', …' if len(absent) > NAMED else ''}. Expected: {'; '.join(benchmark.layout)}"
        )


def exchange(questions: Sequence[Question]) -> list[Question]:
    """Returns the questions that have another picture to be asked about, with that picture."""
    pictures = {q.picture.name: q.picture for q in questions if q.picture is not None}
    names = sorted(pictures)
    described = [
        Pictured(key=name, hashes=(pictures[name].digest(),), caption="") for name in names
    ]
    others = dict(zip(names, exchanged(described), strict=True))
    asked = []
    for question in questions:
        if question.picture is None:
            continue
        other = others[question.picture.name]
        if other is not None:
            asked.append(replace(question, picture=pictures[names[other]]))
    return asked


def answer_task(task: Task, answerer: Answerer, rank: int, processes: int) -> None:
    """Answers this process's share of a task's batches; those answered before stay."""
    progress = task.progress()
    progress.read()
    requests = task.requests()
    lengths = answerer.lengths(requests)
    batches = list(enumerate(plan_batches(requests, lengths, task.decoding.batch_size)))
    mine = [one for one in batches if one[0] % processes == rank]
    waiting = [one for one in mine if one[0] not in progress.done]
    title = f"{task.benchmark.title}{', exchanged' if task.pictures == 'exchanged' else ''}"
    file = progress.writer(rank)
    try:
        done = len(mine) - len(waiting)
        with RunProgress(title, len(mine), done, is_active=rank == 0, unit="batch") as shown:
            for number, replies in answer_batches(answerer, waiting, task.decoding):
                file.add(number, replies)
                shown.advance("")
    finally:
        file.close()


def finish_task(task: Task, model_id: str) -> None:
    """Writes the answers of all processes, in the order of the questions.

    Raises:
        ConfigError: if some are missing.
    """
    progress = task.progress()
    progress.read()
    replies = {reply.number: reply for batch in progress.done.values() for reply in batch}
    absent = len(task.questions) - len(replies)
    if absent:
        raise ConfigError(
            f"{absent} questions of {task.benchmark.title} are not answered yet: run the same "
            "command again to go on"
        )
    rows = []
    for number, question in enumerate(task.questions):
        reply = replies[number]
        answer = Answer(question=question, text=reply.text, prompt=question.prompt_in_answers)
        task.benchmark.grade(answer)
        rows.append(answer_row(answer, reply, model_id, task.fingerprint))
    task.stamp.parent.mkdir(parents=True, exist_ok=True)
    task.stamp.write_text(task.fingerprint)
    write_answers(str(task.path), rows)
    progress.remove()


def answer_row(answer: Answer, reply: Reply, model_id: str, fingerprint: str) -> dict[str, Any]:
    """Returns a row as LLaVA's answer files have it, with what else is known."""
    question = answer.question
    identity = f"{fingerprint} {reply.number} {reply.text}"
    return {
        "question_id": question.question_id,
        "prompt": question.prompt_in_answers,
        "text": reply.text,
        "answer_id": hashlib.blake2b(identity.encode()).hexdigest()[:ANSWER_ID_LENGTH],
        "model_id": model_id,
        "metadata": {},
        "image": None if question.picture is None else question.picture.name,
        "parsed": answer.parsed,
        "score": answer.score,
        "gate_weights": reply.gate_weights,
    }


def model_identity(folder: str) -> str:
    """Returns what tells a model folder from others: its files' names, sizes and samples of them.

    Weights are read in three places, not whole.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(folder).glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for start in sorted({0, max(0, size // 2), max(0, size - SAMPLED_BYTES)}):
                    file.seek(start)
                    digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other evaluations out of a folder.

    Raises:
        ConfigError: if another is at work there, or nothing can be written there.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(
            f"another evaluation is at work in {out}: wait for it, or use another --out"
        ) from error
    finally:
        os.close(file)
