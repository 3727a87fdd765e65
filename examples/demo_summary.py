"""What the demo came to: counts that balance, levels, losses, and where to look."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from schemas.manifest import Manifest
from schemas.terminal import Console

KINDS = {"words": "a word", "yes_no": "yes or no"}
CLEAR = 10
"""Points that the interval's lower end must be above 0 for a model to be said to look."""


@dataclass(frozen=True, slots=True)
class Summary:
    """One run of the demo."""

    out: Path
    seconds: Mapping[str, float]
    """Title of a step to its time by the clock."""
    total_seconds: float
    picture: Path
    """Held out: no training step saw it."""
    caption: str
    question: str
    answer: str


def print_summary(console: Console, summary: Summary) -> None:
    """Prints what the run came to."""
    console.rule("[bold]Summary")
    manifest = Manifest.from_json((summary.out / "curated" / "manifest.json").read_text())
    console.print(counts_table(manifest))
    console.print(levels_table(manifest))
    console.print(losses_table(summary.out))
    console.print(evaluation_table(summary.out))
    console.print(looks_table(summary.out))
    for line in looks_in_words(summary.out):
        console.print(line, highlight=False)
    console.print(answer_table(summary))
    console.print(times_table(summary))
    for what, path in places(summary.out).items():
        console.print(f"{what:34} {path}", soft_wrap=True)
    serve = Path(sys.executable).with_name("aligngpt-train")
    console.print("\nTalk to the model on a page of this machine, http://127.0.0.1:8000/:")
    console.print(f"  {serve} serve {summary.out / 'finetuned' / 'model'}", soft_wrap=True)


def counts_table(manifest: Manifest) -> Table:
    """Returns the balance of each stage: rows in, kept, rejected and why."""
    table = Table(title="Every row is kept, or rejected with a reason", title_justify="left")
    for name in ("stage", "rows in", "kept", "rejected", "reasons"):
        table.add_column(
            name, justify="right" if name in ("rows in", "kept", "rejected") else "left"
        )
    for stage, counts in manifest.stages.items():
        rejected = sum(counts.rejected.values())
        assert counts.rows_in == counts.kept + rejected
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.rejected.items())
        table.add_row(stage, str(counts.rows_in), str(counts.kept), str(rejected), reasons)
    rejected = sum(manifest.rejected.values())
    assert manifest.rows_in == manifest.kept + rejected
    table.add_section()
    table.add_row("all", str(manifest.rows_in), str(manifest.kept), str(rejected), "")
    return table


def levels_table(manifest: Manifest) -> Table:
    """Returns the alignment levels with their counts and score ranges."""
    table = Table(title="Alignment levels", title_justify="left")
    for name in ("level", "pairs", "lowest score", "highest score"):
        table.add_column(name, justify="right")
    for level in manifest.level_edges or []:
        scores = (level["lowest_score"], level["highest_score"])
        shown = ["-" if score is None else f"{score:.3f}" for score in scores]
        table.add_row(str(level["level"]), str(level["count"]), *shown)
    return table


def losses_table(out: Path) -> Table:
    """Returns the validation loss of both stages, before the first step and after the last."""
    table = Table(title="Loss on held-out samples (nats per token)", title_justify="left")
    for name in ("stage", "before", "after", "training steps"):
        table.add_column(name, justify="right" if name != "stage" else "left")
    for stage, folder in (("pre-training", "pretrained"), ("fine-tuning", "finetuned")):
        lines = (out / folder / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        losses = [line["validation/loss"] for line in metrics if "validation/loss" in line]
        steps = max(line["step"] for line in metrics)
        table.add_row(stage, f"{losses[0]:.3f}", f"{losses[-1]:.3f}", str(steps))
    return table


def evaluation_table(out: Path) -> Table:
    """Returns what the model got on held-out yes-no questions, and about other pictures."""
    results = json.loads((out / "evaluation" / "results.json").read_text())["benchmarks"]["pope"]
    table = Table(title="Held-out yes-no questions, in POPE's format", title_justify="left")
    for name in ("", "F1", "accuracy", "says yes"):
        table.add_column(name, justify="right" if name else "left")
    for what, label in (("right", "about their pictures"), ("exchanged", "about other pictures")):
        one = results[what]
        shares = [f"{100 * one[name]:.1f} %" for name in ("accuracy", "yes_ratio")]
        table.add_row(label, f"{one['score']:.1f}", *shares)
    return table


def looks_table(out: Path) -> Table:
    """Returns how held-out questions are answered, with right and with exchanged pictures."""
    figures = json.loads((out / "looks" / "looks.json").read_text())
    table = Table(title="Does the model look? Right answers to held-out questions in pairs")
    for name in ("answer", "questions", "right", "exchanged", "majority", "difference"):
        table.add_column(name, justify="left" if name == "answer" else "right")
    for name, kind in figures["questions"].items():
        found = kind["found"]
        shares = [found["right"], found["exchanged"], kind["majority"]]
        bounds = [round(100 * found[key]) for key in ("difference", "low", "high")]
        table.add_row(
            name.replace("_", "/"),
            str(found["samples"]),
            *(f"{share:.0%}" for share in shares),
            "{:+} points ({:+} to {:+})".format(*bounds),
        )
    first = figures["retrieval"]
    table.add_section()
    table.add_row("caption, of 20", str(first["pictures"]), f"{first['first_of_20']:.0%}")
    return table


def looks_in_words(out: Path) -> list[str]:
    """Returns, for each kind of question, whether the model looks at the picture to answer it.

    That it looks is said only where the whole interval lies more than CLEAR points above 0.
    """
    figures = json.loads((out / "looks" / "looks.json").read_text())
    lines = []
    for name, kind in figures["questions"].items():
        found = kind["found"]
        low, difference = 100 * found["low"], 100 * found["difference"]
        if low > CLEAR:
            verdict = "it looks"
        elif low > 0:
            verdict = "it looks a little"
        else:
            verdict = "it does NOT look, as far as can be seen"
        lines.append(
            f"Asked for {KINDS[name]}, {verdict}: {found['right']:.0%} right with the right "
            f"picture, {found['exchanged']:.0%} with another ({difference:+.0f} points)."
        )
    return lines


def answer_table(summary: Summary) -> Table:
    """Returns what the model was asked about a picture it had not seen, and what it said."""
    table = Table(title="A picture that it has not seen", title_justify="left", show_header=False)
    table.add_row("picture", summary.picture.name)
    table.add_row("its caption", summary.caption)
    table.add_row("asked", summary.question)
    table.add_row("answered", summary.answer)
    return table


def times_table(summary: Summary) -> Table:
    """Returns how long each step took."""
    table = Table(title="Time", title_justify="left")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for title, seconds in summary.seconds.items():
        table.add_row(title, f"{seconds:.0f}")
    table.add_section()
    table.add_row("all", f"{summary.total_seconds:.0f}")
    return table


def places(out: Path) -> dict[str, Path]:
    """Returns what is worth a look, and where it is."""
    return {
        "The curation's report:": out / "curated" / "report.html",
        "Shards and their Parquet:": out / "curated" / "train",
        "What was left out, and why:": out / "curated" / "rejected",
        "Loss of stage 1 and stage 2:": out / "pretrained" / "loss.png",
        "": out / "finetuned" / "loss.png",
        "What it sees, with pictures:": out / "looks" / "answers.html",
        "The model:": out / "finetuned" / "model",
        "Its answers, right and wrong:": out / "evaluation" / "report.html",
    }
