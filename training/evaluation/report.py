"""The page of an evaluation: scores, answers right and wrong, and what the gate asks for."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray

from schemas.errors import ConfigError
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer

EXAMPLES = 4
"""Of right and of wrong answers, for each benchmark."""
THUMBNAIL = (160, 160)
LONGEST_TEXT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An answer as it is shown."""

    picture: str
    """A data URL; empty where there is none."""
    prompt: str
    text: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One benchmark of the page."""

    title: str
    metric: str
    script: str
    numbers: Mapping[str, str]
    right: Sequence[Example]
    wrong: Sequence[Example]
    notes: Sequence[str]


def render(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    sections: Sequence[Section],
    weights: Mapping[str, NDArray[np.float64]],
) -> str:
    """Returns the page.

    Args:
        title: what was evaluated.
        columns: of the table.
        rows: of the table.
        sections: a benchmark each.
        weights: the gate's mean weights by benchmark, (N - 1,) each; none without a gate.
    """
    pages = Environment(loader=PackageLoader("training.evaluation", "."), autoescape=True)
    return pages.get_template("report.jinja").render(
        title=title,
        columns=columns,
        rows=rows,
        sections=sections,
        weights=weights,
        plot=Markup(plot_weights(weights)) if weights else "",
    )


def section(
    benchmark: Benchmark,
    answers: Sequence[Answer],
    parts: Mapping[str, Any],
    notes: Sequence[str],
) -> Section:
    """Returns a benchmark's part of the page."""
    shown = [answer for answer in answers if answer.text is not None and answer.score is not None]
    right = [answer for answer in shown if answer.score == 1.0]
    wrong = [answer for answer in shown if answer.score == 0.0]
    return Section(
        title=benchmark.title,
        metric=benchmark.metric,
        script=benchmark.script,
        numbers={
            name.replace("_", " "): f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            for name, value in parts.items()
            if isinstance(value, int | float)
        },
        right=[example(benchmark, answer) for answer in spread(right)],
        wrong=[example(benchmark, answer) for answer in spread(wrong)],
        notes=notes,
    )


def spread(answers: Sequence[Answer]) -> list[Answer]:
    """Returns a few answers from all over the benchmark."""
    step = max(1, len(answers) // EXAMPLES)
    return list(answers[::step][:EXAMPLES])


def example(benchmark: Benchmark, answer: Answer) -> Example:
    """Returns an answer as it is shown."""
    return Example(
        picture=thumbnail(answer),
        prompt=answer.question.prompt[:LONGEST_TEXT],
        text=(answer.text or "")[:LONGEST_TEXT],
        expected=benchmark.expected(answer.question)[:LONGEST_TEXT],
    )


def thumbnail(answer: Answer) -> str:
    """Returns the question's picture, small, as a data URL; empty if it cannot be read."""
    if answer.question.picture is None:
        return ""
    try:
        picture = answer.question.picture.open()
    except ConfigError:
        return ""
    picture.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def mean_weights(answers: Sequence[Answer]) -> NDArray[np.float64] | None:
    """Returns the mean of the gate's weights, (N - 1,); None where none were kept."""
    kept = [answer.row["gate_weights"] for answer in answers if answer.row.get("gate_weights")]
    if not kept:
        return None
    mean: NDArray[np.float64] = np.mean(np.asarray(kept, dtype=np.float64), axis=0)
    return mean


def plot_weights(weights: Mapping[str, NDArray[np.float64]]) -> str:
    """Returns an SVG: which alignment levels each benchmark asks for.

    A row is a benchmark, a column a local level; the weights of a row add up to 1. Colours are
    drawn around an even share: red more, blue less.
    """
    from matplotlib import rc_context
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    values = np.stack(list(weights.values()))
    rows, levels = values.shape
    figure = Figure(figsize=(2.2 + 0.75 * levels, 1.3 + 0.42 * rows), layout="constrained")
    axes = figure.subplots()
    even = 1.0 / levels
    farthest = max(float(np.abs(values - even).max()), 0.01)
    norm = TwoSlopeNorm(vcenter=even, vmin=even - farthest, vmax=even + farthest)
    drawn = axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
    for row in range(rows):
        for level in range(levels):
            dark = abs(values[row, level] - even) > 0.6 * farthest
            axes.text(level, row, f"{values[row, level]:.3f}", ha="center", va="center",
                      fontsize=8, color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(levels), [str(level + 1) for level in range(levels)])
    axes.set_yticks(range(rows), list(weights))
    axes.set_xlabel("alignment level of the local vector")
    figure.colorbar(drawn, ax=axes, label=f"mean weight (even: {even:.3f})")
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "aligngpt"}):  # the same page whenever it is written
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
