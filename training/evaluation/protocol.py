"""What a benchmark is: read, prompts, parse, score, submission. One file in benchmarks/ each."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from schemas.errors import ConfigError
from training.evaluation.files import Folder
from training.evaluation.questions import Answer, Question
from training.evaluation.tally import Tally, mean_tally

Purpose = Literal["ask", "score", "submit"]
"""ask needs prompts and pictures, score needs the labels, submit all that a server wants."""
ImageMode = Literal["pad", "crop"]
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@dataclass(frozen=True, slots=True)
class Submission:
    """A file for a benchmark's server."""

    name: str
    """Its file name."""
    content: bytes


class Benchmark(ABC):
    """One benchmark: its facts, and the steps that are its own.

    Attributes:
        name: as commands take it.
        title: as people write it.
        aliases: other names that commands take.
        folders: usual names of its folder below the root of all.
        split: what the published number is of.
        has_splits: whether another split can be asked for.
        metric: what the headline is.
        script: whose number it is.
        layout: the files it needs, one line each, for messages and docs.
        source: where to get them.
        questions: how many the published number is of.
        max_new_tokens: longest answer of the published scripts.
        image_mode: how pictures become square in the paper's code.
        digits: decimals that the script rounds its number to; None if it does not.
        paper: the paper's rows, 7B and 13B.
        is_binary: whether an answer is right or wrong and nothing between.
        is_judged: whether a judge scores the answers.
        scores_rows: whether the script counts rows of the answer file, not questions.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = ()
    split: ClassVar[str]
    has_splits: ClassVar[bool] = False
    metric: ClassVar[str]
    script: ClassVar[str]
    layout: ClassVar[tuple[str, ...]]
    source: ClassVar[str]
    questions: ClassVar[int]
    max_new_tokens: ClassVar[int] = 128
    image_mode: ClassVar[ImageMode] = "pad"
    digits: ClassVar[int | None] = None
    paper: ClassVar[Mapping[str, float]]
    is_binary: ClassVar[bool] = True
    is_judged: ClassVar[bool] = False
    scores_rows: ClassVar[bool] = False

    def folder(self, root: str) -> Folder:
        """Returns where its files are looked for."""
        return Folder(Path(root), self.title, self.folders, "; ".join(self.layout))

    def check_split(self, split: str | None) -> None:
        """Raises `ConfigError` if another split is asked for, and there is but one."""
        if split is not None and not self.has_splits:
            raise ConfigError(
                f"{self.title} has one split here ({self.split}): leave --split {split} out"
            )

    @abstractmethod
    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions, in the order of the published scripts.

        Args:
            folder: from `folder`.
            split: another than the published one; None takes that, or what is there.
            purpose: what the questions are for.

        Raises:
            ConfigError: if a file is missing, cut off, or another; it says what is expected where.
        """

    def key(self, question_id: int | str, prompt: str | None) -> Hashable:
        """Returns by what rows of answers and questions find each other.

        Args:
            question_id: of either.
            prompt: of either, where it has one.
        """
        return str(question_id)

    @abstractmethod
    def grade(self, answer: Answer) -> None:
        """Sets what the answer says and what it is worth; a missing one is worth 0."""

    @abstractmethod
    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the numbers beside the headline, under their usual names."""

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns the sums that the headline is made of; here, of the mean of the answers'."""
        scored = [answer for answer in answers if answer.score is not None]
        scores = [float(answer.score or 0.0) for answer in scored]
        return mean_tally([answer.unit for answer in scored], scores)

    def score(self, answers: Sequence[Answer]) -> float:
        """Returns the headline as the script gives it."""
        exact = self.tally(answers).score()
        return exact if self.digits is None else round(exact, self.digits)

    def published(self, answers: Sequence[Answer]) -> int:
        """Returns how many of these the number is of, to be compared with `questions`."""
        return len(answers)

    def relevant(self, answers: Sequence[Answer]) -> list[Answer]:
        """Returns the answers that are looked at; all, unless a part was plainly not asked."""
        return list(answers)

    def check(self, answers: Sequence[Answer]) -> None:
        """Raises ConfigError if the published script refuses such answers."""
        return

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns the file for the benchmark's server; None if it has none."""
        return None

    @property
    def has_server(self) -> bool:
        """Whether there is a file to submit."""
        return type(self).submission is not Benchmark.submission

    def expected(self, question: Question) -> str:
        """Returns the right answer in words; empty where it is not public."""
        for name in ("label", "letter", "answer"):
            if question.facts.get(name):
                return str(question.facts[name])
        given = [str(one) for one in question.facts.get("answers") or []]
        return max(given, key=given.count) if given else ""

    def paired(self, answers: Sequence[Answer]) -> dict[Hashable, float]:
        """Returns the score of each thing that is right or wrong as one, by its key."""
        return {
            self.key(answer.question.question_id, answer.question.prompt_in_answers): answer.score
            for answer in answers
            if answer.score is not None
        }


def mean_by(answers: Sequence[Answer], name: str, factor: float = 100.0) -> dict[str, float]:
    """Returns the mean score of the answers by one of their questions' facts."""
    groups: dict[str, list[float]] = {}
    for answer in answers:
        label = answer.question.facts.get(name)
        if answer.score is not None and label is not None:
            groups.setdefault(str(label), []).append(answer.score)
    return {label: factor * sum(scores) / len(scores) for label, scores in groups.items()}


def mean_score(answers: Sequence[Answer], factor: float = 100.0) -> float:
    """Returns the mean score of the answers; 0 of none."""
    scores = [answer.score for answer in answers if answer.score is not None]
    return factor * sum(scores) / len(scores) if scores else 0.0
