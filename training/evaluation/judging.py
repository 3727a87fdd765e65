"""What a judged benchmark adds to the protocol: requests to a judge, and replies read."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from training.evaluation.files import Folder
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer

Parser = Literal["official", "strict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """One call of a judge."""

    messages: tuple[dict[str, str], ...]
    temperature: float
    max_tokens: int


@dataclass(slots=True, kw_only=True)
class Judgement:
    """What a judge gave an answer in one run."""

    value: Any
    """As the benchmark's script stores it; None where strict reading finds none."""
    replies: list[str] = field(default_factory=list)
    is_parsed: bool = True
    """False where no score was in the reply, whatever the script then stores."""


def add_judgement(answer: Answer, judgement: Judgement) -> None:
    """Adds a run's judgement to an answer."""
    answer.judged.append(judgement.value)
    answer.replies += judgement.replies[-1:]
    answer.unparsed += not judgement.is_parsed


Ask = Callable[[JudgeRequest], str]
"""Returns the judge's reply."""


class JudgedBenchmark(Benchmark):
    """A benchmark whose answers a judge scores.

    Attributes:
        judge_model: what the published numbers were judged by.
        judge_file: how the file with judgements is called that the script reads.
    """

    judge_model: ClassVar[str]
    judge_file: ClassVar[str]
    is_judged = True
    is_binary = False

    @abstractmethod
    def rules(self, folder: Folder) -> Any:
        """Returns the rule texts, which are the benchmark's and read from its files.

        Raises:
            ConfigError: if they are not there.
        """

    @abstractmethod
    def first_request(self, answer: Answer, rules: Any) -> JudgeRequest:
        """Returns what the judge is asked about an answer."""

    @abstractmethod
    def judge(self, answer: Answer, rules: Any, ask: Ask, parser: Parser) -> Judgement:
        """Returns what a judge makes of an answer in one run."""

    @abstractmethod
    def recorded(self, rows: Any) -> dict[str, list[Judgement]] | None:
        """Returns judgements by question id if a file holds them; None if it holds answers.

        Args:
            rows: a JSON object or the rows of a JSONL file.
        """

    @abstractmethod
    def record(self, answers: Sequence[Answer], judge_model: str) -> bytes:
        """Returns the judgements as the published script keeps them; `recorded` reads it."""

    def runs(self, answers: Sequence[Answer]) -> int:
        """Returns how many runs of the judge all answers have."""
        return min((len(answer.judged) for answer in answers if answer.judged), default=0)
