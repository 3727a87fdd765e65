"""What the commands that measure a model take at the command line."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from schemas.errors import ConfigError, require_at_least, require_positive
from training.config import Control, SampleForm
from training.evaluation.judging import Parser


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Who judges open answers (LLaVA-Bench, MM-Vet), and how its replies are read."""

    url: str = ""
    """Address of an OpenAI-compatible endpoint, as https://api.openai.com/v1; empty judges
    nothing. Its key is read from the environment variable OPENAI_API_KEY."""
    model: str = ""
    """Name of the judging model; empty takes the one of the published numbers."""
    runs: int = 1
    """How often each answer is judged; more give a mean and a deviation."""
    parser: Parser = "official"
    """official reads replies as the published scripts do, faults included; strict takes only a
    score where one is expected, and leaves out what it cannot read."""
    retries: int = 8
    """Attempts after a failed call, with growing pauses."""
    timeout_seconds: float = 120.0
    """Longest wait for a reply."""
    input_price: float = 30.0
    """Dollars for a million tokens of requests, to reckon the price with (gpt-4's list price)."""
    output_price: float = 60.0
    """Dollars for a million tokens of replies."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        require_at_least(1, self, ("runs",), "judge.")
        require_at_least(0, self, ("retries", "input_price", "output_price"), "judge.")
        require_positive(self, ("timeout_seconds",), "judge.")


OF_BENCHMARKS = (
    "split",
    "protocol",
    "batch_size",
    "chat_template",
    "processes",
    "limit",
    "judge",
    "yes",
)
OF_DATASETS = ("told_level", "form", "tokens_per_sequence", "samples")
"""Settings of `evaluate` that say nothing to its other half."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model: on benchmarks of the paper, or its loss on a dataset.

    With --benchmarks the model answers their questions, and the answers are scored as the published
    scripts do; without, its loss on the datasets in --data is printed.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ""
    """Model folder."""
    list: bool = False
    """Show every benchmark with its files, split, metric and where to get it, and do nothing."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks to run: pope, mme, …, or all."""
    data: tuple[str, ...] = ()
    """With --benchmarks the one folder with their files, or with a folder for each
    (docs/evaluation.md); else dataset folders."""
    out: str = ""
    """Folder for answers and results. A run that stopped there goes on."""
    split: str | None = None
    """Another split than the published one, as val or dev."""
    protocol: Literal["aligngpt", "llava-1.2"] = "aligngpt"
    """aligngpt pads or crops pictures as the paper's code did for each benchmark; llava-1.2 pads
    for all, as LLaVA does since its version 1.2."""
    control: Control = "none"
    """exchanged asks every question, or reads every sample, once more with another's picture: what
    a model gets without looking; the difference is what its pictures are worth to it."""
    batch_size: int = 16
    """Questions answered at once."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the model; auto is bf16 on a GPU or processor with instructions for it, else
    fp32. The published scripts use fp16."""
    chat_template: Literal["model", "vicuna_v1"] = "model"
    """How questions are put to the model: by its own chat template, or Vicuna's."""
    processes: int = 1
    """Processes on this machine, one for each GPU, that share the questions."""
    limit: int = 0
    """Ask only the first so many questions of each benchmark, for a trial; 0 asks all."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    yes: bool = False
    """Judge without asking whether the price is right."""
    told_level: tuple[int, ...] = ()
    """Of a dataset: the levels that the model is told in turn, as 1 2 8. What becomes of its loss
    is shown, with its level vectors and what its gate asks for; --out gets levels.json and .png."""
    form: SampleForm = "conversation"
    """Of a dataset: caption for pairs, conversation for instruction samples."""
    tokens_per_sequence: int = 2048
    """Of a dataset: tokens of a packed sequence; longer samples are cut off at the end."""
    samples: int = 0
    """Of a dataset: most samples to read; 0 reads all."""

    def __post_init__(self) -> None:
        """Checks that what belongs together is there."""
        if self.list:
            return
        if not self.model:
            raise ConfigError("evaluate needs a model folder: aligngpt-train evaluate MODEL …")
        if not self.data:
            raise ConfigError("--data is missing: the benchmarks' folder, or dataset folders")
        if self.benchmarks and (len(self.data) != 1 or not self.out):
            raise ConfigError("with --benchmarks give one folder as --data, and one as --out")
        if self.batch_size < 1 or self.limit < 0 or self.processes < 1:
            raise ConfigError("--batch-size and --processes must be positive, --limit not negative")
        require_at_least(0, self, ("samples",), "--")
        self._check_uses()

    def _check_uses(self) -> None:
        """Raises `ConfigError` for a flag that would change nothing."""
        others = OF_DATASETS if self.benchmarks else OF_BENCHMARKS
        usual = Evaluate(list=True)
        for name in others:
            if getattr(self, name) != getattr(usual, name):
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{flag} is for the loss on a dataset: leave --benchmarks out"
                    if self.benchmarks
                    else f"{flag} is for --benchmarks, and changes nothing of a loss: leave it out"
                )
        if self.out and not (self.benchmarks or self.told_level):
            raise ConfigError("--out is for --benchmarks and --told-level: a loss is printed")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score an answer file of a benchmark, this program's or LLaVA's."""

    benchmark: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BENCHMARK")]
    """Benchmark: pope, mme, … (`aligngpt-train evaluate --list` names them)."""
    data: str
    """Folder with the benchmark's files, or with a folder for each benchmark."""
    predictions: tuple[str, ...]
    """Answer file; of a judged benchmark also the judge's files, one for each run."""
    split: str | None = None
    """Another split than the published one, as val or dev."""
    submission: str | None = None
    """Write this file for the benchmark's server instead of scoring."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    yes: bool = False
    """Judge without asking whether the price is right."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare two models' answers to the same questions: differences, intervals, McNemar's test."""

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """Folder of an evaluation (--out), or an answer file."""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """Another one."""
    data: str
    """Folder with the benchmarks' files."""
    benchmark: str | None = None
    """The benchmark, where answer files are given; of folders, only this one."""
    split: str | None = None
    """Another split than the published one, as val or dev."""
    json: bool = False
    """Print one JSON object instead of a table."""


EVALUATION_COMMANDS: dict[str, type[Any]] = {
    "evaluate": Evaluate,
    "score": Score,
    "compare": Compare,
}
