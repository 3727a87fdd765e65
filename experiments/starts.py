"""How many steps does a projector need to look, by where it starts? Two sets of data, three seeds.

    python examples/demo.py --out demo                    # once: questions and models
    python experiments/starts.py --demo demo --out runs/starts --seeds 0 1 2
    python experiments/starts.py --out runs/starts --write-docs

Projector, level vectors and language model learn in one stage, on `shapes and stamps` (the
demo's questions) or on `digits` (scikit-learn's 1,797 handwritten ones, a fifth of them held out:
"What is in this picture?", "Seven"). Measured is what the right picture is worth: the loss of
held-out answers with exchanged pictures less that with the right ones, in nats a target token, at
each validation. Written are the curves, and the steps at which they first reach two marks: a half
and nine tenths of what the regression's start has at the end on average over the seeds.

A random start is given the rate of the language model as well as the slow one of the regression,
and the better one counts.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import PIL.Image

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCS = ROOT / "docs"
MARKS = ("<!-- starts -->\n", "<!-- end of starts -->\n")
STEPS = 48
EVERY = 8
"""Steps between two validations."""
RATE = "5e-4"
SLOW = "2e-5"
NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
DIGIT_PIXELS = 128
SHARES = (0.5, 0.9)
"""Of the regression's last gain: the marks."""


@dataclass(frozen=True, slots=True)
class Start:
    """A way to start, and the projector's rate."""

    about: str
    flags: tuple[str, ...]


def _start(about: str, name: str, rate: str) -> Start:
    flags = ("--model.projector-start", name, "--optimizer.part-learning-rates.projector", rate)
    return Start(f"{about}, {rate}", flags)


STARTS = {
    "regression": _start("regression", "regression", SLOW),
    "scaled": _start("random at that scale", "scaled", RATE),
    "scaled_slow": _start("random at that scale", "scaled", SLOW),
    "paper": _start("the paper's random start", "paper", RATE),
}
"""By name."""
DATA = {"demo": "shapes and stamps", "digits": "digits"}
"""By name."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What pictures were worth in one run."""

    data: str
    start: str
    seed: int
    steps: tuple[int, ...]
    gains: tuple[float, ...]
    """Nats a target token, by step."""


def write_digits(out: Path) -> None:
    """Curates scikit-learn's digits into `out/digits` and `out/digits_held_out`, unless there."""
    from sklearn.datasets import load_digits  # Wanted only where digits are trained on.

    digits = load_digits()
    for split, is_held_out in (("digits", False), ("digits_held_out", True)):
        if (out / split / "manifest.json").exists():
            continue
        pictures = out / f"{split}_pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        rows = []
        for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
            if (number % 5 == 0) != is_held_out:
                continue
            ink = (255 - values * 255 / 16).round().astype(np.uint8)
            picture = PIL.Image.fromarray(ink).resize((DIGIT_PIXELS, DIGIT_PIXELS))
            picture.save(pictures / f"{number}.png")
            turns = [
                {"from": "human", "value": "<image>\nWhat is in this picture?"},
                {"from": "gpt", "value": NUMBERS[digit]},
            ]
            row = {"id": f"digit_{number}", "image": f"{number}.png", "conversations": turns}
            rows.append({**row, "similarity": 0})
        (out / f"{split}.json").write_text(json.dumps(rows))
        call(
            *("aligngpt-curate", "curate", "--recipe", "llava_instructions"),
            *("--pairs", f"{out}/{split}.json", "--read.image-folder", str(pictures)),
            *("--read.as-captions", "--out", f"{out}/{split}"),
        )


def call(name: str, *words: str) -> None:
    """Runs a command of this project; ends where it fails."""
    print("$", name, *words, flush=True)
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    subprocess.run([BIN / name, *words], check=True, env={**os.environ, "PYTHONPATH": paths})


def train(data: str, start: str, seed: int, demo: Path, out: Path) -> None:
    """Trains a run; one that was stopped goes on, one that is done is left alone."""
    models = demo / "models"
    folders = {
        "demo": (demo / "questions", demo / "instructions_validation", "conversation"),
        "digits": (out / "digits", out / "digits_held_out", "caption"),
    }
    trained_on, held_out, form = folders[data]
    call(
        *("aligngpt-train", "pretrain", "--recipe", "demo_pretrain", "--data", str(trained_on)),
        *("--data.validation-data", str(held_out), "--data.form", form),
        *("--model.language-model", f"{models}/smollm2"),
        *("--model.vision-tower", f"timm:local-dir:{models}/vision_tower"),
        *("--train-parts", "projector", "level_vectors", "language_model"),
        *("--optimizer.learning-rate", RATE, *STARTS[start].flags),
        *("--epochs", "4", "--max-steps", str(STEPS)),
        *("--validate-every-steps", str(EVERY), "--data.validation-samples", "32"),
        *("--data.tokens-per-sequence", "256"),
        *("--data.vision-features-folder", f"{out}/{data}_features"),
        *("--told-samples", "0", "--seed", str(seed), "--out", f"{out}/{data}_{start}_{seed}"),
    )


def curves(out: Path) -> Iterator[Curve]:
    """Yields the curves of the runs that are done."""
    for data in DATA:
        for start in STARTS:
            for folder in sorted(out.glob(f"{data}_{start}_[0-9]*")):
                lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
                name = "validation/picture_gain_nats"
                found = {row["step"]: row[name] for row in map(json.loads, lines) if name in row}
                if STEPS in found:
                    steps = tuple(sorted(found))
                    seed = int(folder.name.rpartition("_")[2])
                    gains = tuple(found[step] for step in steps)
                    yield Curve(data, start, seed, steps, gains)


def steps_to(curve: Curve, mark: float) -> float:
    """Returns the step at which a curve first reaches a gain, between validations by a line."""
    before = (curve.steps[0], curve.gains[0])
    for step, gain in zip(curve.steps, curve.gains, strict=True):
        if gain >= mark:
            if gain == before[1]:
                return float(step)
            share = (mark - before[1]) / (gain - before[1])
            return before[0] + max(0.0, share) * (step - before[0])
        before = (step, gain)
    return float("inf")


def table(found: Sequence[Curve]) -> str:
    """Returns the steps to the marks, and the last gains, as a Markdown table."""
    names = ["data", "start, projector's rate", "seeds", f"gain at step {STEPS}"]
    names += [f"steps to {share:.0%} of the regression's" for share in SHARES]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for data, about in DATA.items():
        best = [
            curve.gains[-1] for curve in found if (curve.data, curve.start) == (data, "regression")
        ]
        if not best:
            continue
        marks = [share * float(np.mean(best)) for share in SHARES]
        for start, kind in STARTS.items():
            own = [curve for curve in found if (curve.data, curve.start) == (data, start)]
            if not own:
                continue
            last = [curve.gains[-1] for curve in own]
            cells = [about, kind.about, " ".join(str(curve.seed) for curve in own)]
            cells.append(", ".join(f"{gain:.2f}" for gain in last))
            for mark in marks:
                needed = (steps_to(curve, mark) for curve in own)
                cells.append(", ".join(_in_words(steps) for steps in needed))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _in_words(steps: float) -> str:
    return f"{steps:.0f}" if np.isfinite(steps) else f"over {STEPS}"


def draw(found: Sequence[Curve], path: Path) -> None:
    """Draws the curves, one panel for each set of data."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(DATA), figsize=(10, 4), sharex=True, layout="constrained")
    colours = dict(zip(STARTS, ("#1b6ca8", "#d1495b", "#edae49", "#6a7b76"), strict=True))
    for panel, (data, about) in zip(panels, DATA.items(), strict=True):
        told = set()
        for curve in found:
            if curve.data == data:
                label = None if curve.start in told else STARTS[curve.start].about
                told.add(curve.start)
                panel.plot(curve.steps, curve.gains, color=colours[curve.start], label=label)
        panel.axhline(0, color="#999999", linewidth=0.8)
        panel.set(title=about, xlabel="steps", ylabel="the right picture's worth, nats a token")
        panel.spines[["top", "right"]].set_visible(False)
    lines = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Runs what is not done yet, and shows all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/starts"), help="folder of the runs")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=["regression", "scaled"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--write-docs", action="store_true", help="write table and picture to docs")
    parser.add_argument("--quick", action="store_true", help="trains nothing, shows what is done")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.demo and not arguments.quick:
        if "digits" in arguments.data:
            write_digits(out)
        for seed in arguments.seeds:
            for data in arguments.data:
                for start in arguments.starts:
                    train(data, start, seed, arguments.demo.resolve(), out)
    found = list(curves(out))
    text = table(found)
    print(text)
    if found:
        draw(found, out / "starts.png")
    if arguments.write_docs:
        page = DOCS / "looks.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        page.write_text(before + MARKS[0] + text + MARKS[1] + after, encoding="utf-8")
        draw(found, DOCS / "starts.png")


if __name__ == "__main__":
    main()
