"""What makes the demo's model look? Trains both stages in several ways and asks held-out questions.

    python examples/demo.py --out demo                    # once: datasets and models
    python experiments/looks.py --demo demo --out runs/looks --trials recipe scaled --seeds 0 1
    python experiments/looks.py --out runs/looks --write-docs

Each trial is the demo's two recipes with a few flags of `aligngpt-train` changed. What is done is
not done twice. A row has the share of right answers with right and with exchanged pictures, the
difference with its 95 % interval, and the processor time of both stages, preparation included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.recipes import demo_finetune

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
DOCS = ROOT / "docs" / "looks.md"
MARKS = ("<!-- trials -->\n", "<!-- end of trials -->\n")


@dataclass(frozen=True, slots=True)
class Trial:
    """Flags that differ from the demo's recipes."""

    about: str
    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()


TRIALS = {
    "recipe": Trial("the demo's recipe"),
    "quiet": Trial("starts at half the words' spread", ("--model.projector-spread", "0.5")),
    "fast": Trial(
        "projector at the others' rate",
        ("--optimizer.part-learning-rates.projector", "1e-3"),
        ("--optimizer.part-learning-rates.projector", "5e-4"),
    ),
    "beta": Trial("beta2 0.999", ("--optimizer.beta2", "0.999"), ("--optimizer.beta2", "0.999")),
    "scaled": Trial("random start at that scale", ("--model.projector-start", "scaled")),
    "paper": Trial("the paper's random start", ("--model.projector-start", "paper")),
}
"""By name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial with a seed."""

    trial: str
    steps: int
    """Of stage 2; 0 are the recipe's."""
    seed: int
    cpu_seconds: float
    """Of both stages."""
    looks: dict[str, Any]
    """What `examples/demo_looks.py` found."""


def run_trial(name: str, seed: int, demo: Path, out: Path, steps: int) -> Outcome:
    """Returns the outcome of a trial, trained and asked now.

    Args:
        demo: folder of a demo that has its datasets and models.
        steps: of stage 2; 0 takes the recipe's.
    """
    trial, folder = TRIALS[name], out / f"{name}_{steps}_{seed}"
    models = demo / "models"
    seeded = ("--seed", str(seed))
    before = _cpu_seconds()
    _call(
        *("aligngpt-train", "pretrain", "--recipe", "demo_pretrain"),
        *("--data", f"{demo}/curated", f"{demo}/shape_captions"),
        *("--data.validation-data", f"{demo}/curated_validation"),
        *("--model.language-model", f"{models}/smollm2"),
        *("--model.vision-tower", f"timm:local-dir:{models}/vision_tower"),
        *(*seeded, "--out", f"{folder}/pretrained", *trial.pretrain),
    )
    fewer = ("--max-steps", str(steps)) if steps else ()
    _call(
        *("aligngpt-train", "finetune", "--recipe", "demo_finetune", *fewer, *trial.finetune),
        *("--data", f"{demo}/questions"),
        *("--data.validation-data", f"{demo}/instructions_validation"),
        *("--init", f"{folder}/pretrained/model", *seeded, "--out", f"{folder}/finetuned"),
    )
    seconds = _cpu_seconds() - before
    _call(
        *("aligngpt-train", "evaluate", f"{folder}/finetuned/model", "--control", "exchanged"),
        *("--benchmarks", "pope", "--data", f"{demo}/benchmarks", "--out", f"{folder}/evaluation"),
    )
    _call(
        *("python", f"{ROOT}/examples/demo_looks.py", "--model", f"{folder}/finetuned/model"),
        *("--yes-no", f"{folder}/evaluation/pope"),
        *("--questions", f"{demo}/instructions_validation"),
        *("--pairs", f"{demo}/curated_validation", "--out", f"{folder}/looks"),
    )
    looks = json.loads((folder / "looks" / "looks.json").read_text())
    return Outcome(trial=name, steps=steps, seed=seed, cpu_seconds=seconds, looks=looks)


def _call(name: str, *words: str) -> None:
    print("$", name, *words, flush=True)
    program = sys.executable if name == "python" else str(BIN / name)
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths}
    subprocess.run([program, *words], check=True, env=environment)


def _cpu_seconds() -> float:
    """Returns the processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(outcomes: list[Outcome]) -> str:
    """Returns the outcomes as a Markdown table, in their order."""
    names = ["trial", "steps of stage 2", "seed", "processor time", "words", "yes or no"]
    names.append("right one of 20 captions")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for outcome in outcomes:
        kinds = [_in_words(outcome.looks["questions"][kind]) for kind in ("words", "yes_no")]
        first = outcome.looks["retrieval"]["first_of_20"]
        steps = str(outcome.steps or demo_finetune().max_steps)
        cells = [TRIALS[outcome.trial].about, steps, str(outcome.seed)]
        cells.append(f"{outcome.cpu_seconds:.0f} s")
        lines.append(f"| {' | '.join([*cells, *kinds, f'{first:.2f}'])} |")
    return "\n".join(lines) + "\n"


def _in_words(kind: dict[str, Any]) -> str:
    found = kind["found"]
    bounds = [round(100 * found[name]) for name in ("difference", "low", "high")]
    shares = f"{found['right']:.2f} right, {found['exchanged']:.2f} exchanged"
    return f"{shares}: {bounds[0]:+} ({bounds[1]:+} to {bounds[2]:+})"


def write_docs(text: str) -> None:
    """Puts the table between its marks in the page."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    DOCS.write_text(before + MARKS[0] + text + MARKS[1] + after, encoding="utf-8")


def main() -> None:
    """Runs the trials that are not done yet, and shows all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder of a finished demo")
    parser.add_argument("--out", type=Path, default=Path("runs/looks"), help="folder of the runs")
    parser.add_argument("--trials", nargs="*", default=[], choices=sorted(TRIALS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=0, help="of stage 2; 0 takes the recipe's")
    parser.add_argument("--write-docs", action="store_true", help=f"write the table to {DOCS.name}")
    parser.add_argument("--quick", action="store_true", help="trains nothing, shows what is done")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = arguments.out / "outcomes.jsonl"
    lines = record.read_text().splitlines() if record.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    done = {(outcome.trial, outcome.steps, outcome.seed) for outcome in outcomes}
    for name in [] if arguments.quick else arguments.trials:
        for seed in arguments.seeds:
            if (name, arguments.steps, seed) in done:
                continue
            if arguments.demo is None:
                parser.error("--demo: which demo has the datasets and models?")
            demo = arguments.demo.resolve()
            outcomes.append(run_trial(name, seed, demo, arguments.out, arguments.steps))
            with record.open("a") as file:
                file.write(json.dumps(asdict(outcomes[-1])) + "\n")
    text = table(outcomes)
    print(text)
    if arguments.write_docs:
        write_docs(text)


if __name__ == "__main__":
    main()
