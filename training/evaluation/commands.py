"""What the commands that measure a model take at the command line."""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from training.config import Precision, SampleForm


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model's loss on a dataset."""

    model: Annotated[str, tyro.conf.Positional]
    """Model folder."""
    data: tuple[str, ...]
    """Dataset folders."""
    form: SampleForm = "conversation"
    """caption for pairs, conversation for instruction samples."""
    tokens_per_sequence: int = 2048
    """Tokens of a packed sequence; longer samples are cut off at the end."""
    samples: int = 0
    """Most samples to read; 0 reads all."""
    precision: Precision = "auto"
    """Arithmetic of the model; auto is bf16 on a GPU or processor with instructions for it, else
    fp32."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score an answer file of a benchmark, this program's or LLaVA's."""

    benchmark: Annotated[str, tyro.conf.Positional]
    """Benchmark: pope, mme, … (`aligngpt-train evaluate --list` names them)."""
    data: str
    """Folder with the benchmark's files, or with a folder for each benchmark."""
    predictions: tuple[str, ...]
    """Answer file; of a judged benchmark also the judge's files, one for each run."""
    split: str | None = None
    """Another split than the published one, as val or dev."""
    submission: str | None = None
    """File to write for the benchmark's server."""
    json: bool = False
    """Print one JSON object instead of a table."""


EVALUATION_COMMANDS: dict[str, type[Any]] = {"evaluate": Evaluate, "score": Score}
