"""What is known of a run while it goes on: JSONL, TensorBoard, W&B, the terminal and a picture.

`metrics.jsonl` has one line for each log entry: `step` and values named `group/name_unit`.
"""

import hashlib
import importlib.util
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from schemas.errors import ConfigError


def check_wandb(project: str) -> None:
    """Raises `ConfigError` if Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"wandb_project is {project!r}, but wandb is not installed: pip install "
            "'aligngpt[wandb]', or leave wandb_project empty"
        )


def start_wandb(out: Path, project: str) -> Any:
    """Returns a run of Weights & Biases, the same one whenever the run in this folder goes on.

    Its own environment variables hold: `WANDB_MODE=offline` sends nothing, and so on.
    """
    import wandb

    name = hashlib.blake2b(str(out.resolve()).encode(), digest_size=8).hexdigest()
    online = wandb.init(
        project=project,
        id=name,
        name=out.name,
        dir=str(out),
        resume="allow",
        config=json.loads((out / "config.json").read_text()),
        settings=wandb.Settings(save_code=False, console="off", silent=True),
    )
    # A run that went back to a checkpoint logs some steps again; wandb's own count cannot.
    online.define_metric("*", step_metric="step")
    return online


class MetricsLog:
    """Writes metrics to JSONL, TensorBoard and, if asked to, Weights & Biases.

    Silent but on the first process.
    """

    def __init__(
        self, out: Path, *, is_active: bool, first_step: int, wandb_project: str = ""
    ) -> None:
        self._path = out / "metrics.jsonl"
        self._is_active = is_active
        self._board: Any = None
        self._online: Any = None
        if not is_active:
            return
        out.mkdir(parents=True, exist_ok=True)
        kept = [entry for entry in read_metrics(self._path) if entry["step"] <= first_step]
        aside = out / ".metrics.jsonl.tmp"
        aside.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        aside.replace(self._path)
        if importlib.util.find_spec("tensorboard") is not None:  # a bare GPU machine lacks it
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)
        if wandb_project:
            self._online = start_wandb(out, wandb_project)

    def write(
        self,
        step: int,
        values: dict[str, float],
        histograms: Mapping[str, Sequence[float]] = MappingProxyType({}),
    ) -> None:
        """Writes the values of a step, counted from 1; step 0 is before the first.

        Args:
            histograms: counts in equal parts of 0 to 1.
        """
        if not self._is_active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values, **histograms}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            for name, counts in histograms.items():
                _add_histogram(self._board, name, counts, step)
        if self._online is not None:
            import wandb

            online = {
                name: wandb.Histogram(np_histogram=(np.array(counts), np.array(_edges(counts))))
                for name, counts in histograms.items()
            }
            self._online.log({"step": step, **values, **online})

    def close(self) -> None:
        """Writes out what is waiting."""
        if self._board is not None:
            self._board.close()
        if self._online is not None:
            self._online.finish()


def _edges(counts: Sequence[float]) -> list[float]:
    """Returns the bounds of equal parts of 0 to 1, one more than there are counts."""
    return [number / len(counts) for number in range(len(counts) + 1)]


def _add_histogram(board: Any, name: str, counts: Sequence[float], step: int) -> None:
    edges = _edges(counts)
    middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    board.add_histogram_raw(
        name,
        min=0.0,
        max=1.0,
        num=sum(counts),
        sum=sum(n * middle for n, middle in zip(counts, middles, strict=True)),
        sum_squares=sum(n * middle**2 for n, middle in zip(counts, middles, strict=True)),
        bucket_limits=edges[1:],
        bucket_counts=list(counts),
        global_step=step,
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a `metrics.jsonl`, without a last line that was cut off."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def draw_loss(metrics: Path, picture: Path) -> None:
    """Draws the training and validation loss over the steps as a PNG, where matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:  # a bare GPU machine lacks it
        return
    from matplotlib.figure import Figure

    entries = read_metrics(metrics)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (
        ("train/loss", "training", "-"),
        ("validation/loss", "held out", "o-"),
        ("validation/exchanged_loss", "held out, exchanged pictures", "s--"),
    ):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss per target token (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=150)
