"""Training: ours beside the usual way, on the same model, samples and machine, in one call.

    python benchmarks/train/run.py --save      CPU: SmolLM2-135M and the demo's tower, 8 minutes
    python benchmarks/train/run.py --quick     CPU: a tiny random model, less than three minutes
    python benchmarks/train/run.py --shape 7b  one large GPU: Vicuna 7B's shape, both stages, MFU;
                                               below 120 GB half of its layers (shape 3.5b)

The usual way is the Trainer of transformers at its defaults: rows of one sample each, eight in a
batch, padded to the longest, in random order. Beside it stands the same with batches grouped by
length. Ours packs. Every side trains one epoch of the same samples (mixture.py beside it): in
stage 1 projector and level vectors on captions, in stage 2 the language model too, on a mixture of
conversations, of which half are made by this script: long answers that list captions. Each has a
process of its own, and the same arithmetic: fp32 on a CPU; on a GPU bf16, in stage 2 with
activation checkpointing, where ours keeps fp32 weights in the optimizer and the usual side does
not. A side that fails is reported, the others go on, and the status is 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.results import Table, add_save_option, show_table

ROOT = Path(__file__).parents[2]
SIDES = {"ours": "ours", "usual": "usual", "grouped": "usual, grouped by length"}
Found = dict[str, float]


def main() -> None:
    """Runs the benchmark."""
    arguments = parsed_arguments()
    if arguments.side:
        print("RESULT " + json.dumps(run_side(arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as folder:
        prepare(arguments, Path(folder))
        rows = [
            row for stage in arguments.stages for row in compare(arguments, Path(folder), stage)
        ]
    told = [number for number in range(len(COLUMNS)) if any(row[number] for row in rows)]
    columns = [COLUMNS[number] for number in told]
    show_table(
        Table(columns, [[row[number] for number in told] for row in rows]),
        arguments.save,
        model=arguments.shape,
        device=arguments.device,
        rounds=arguments.rounds,
    )
    sys.exit(0 if len(rows) == len(arguments.stages) * len(arguments.sides) else 1)


def parsed_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model with new weights")
    parser.add_argument("--shape", choices=("tiny", "smollm2", "3.5b", "7b"), default="smollm2")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of 3.5b and 7b cuda, else cpu")
    parser.add_argument("--samples", type=int, help="of the mixture")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2))
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=tuple(SIDES))
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    add_save_option(parser, "train")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shape = "tiny"
    is_large = arguments.shape in ("3.5b", "7b")
    arguments.device = arguments.device or ("cuda" if is_large else "cpu")
    arguments.stages = arguments.stages or ((1, 2) if is_large else (2,))
    return arguments


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Writes the samples and the model's parts."""
    from transformers.utils import logging as transformers_logging

    from benchmarks.train.mixture import SIZES, write_stage
    from benchmarks.train.models import fitting_shape, write_parts

    transformers_logging.disable_progress_bar()
    if arguments.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it guesses
    wanted, arguments.shape = arguments.shape, fitting_shape(arguments.shape)
    if arguments.shape != wanted:
        print("7b does not fit this GPU: the same width with 16 of 32 layers, 3.5b, in its place")
    size = SIZES[arguments.shape]
    for stage in arguments.stages:
        # Of as many pairs as conversations, whose sequences are more, half would be loaded ahead.
        samples = arguments.samples or size["samples"] * (2 if stage == 1 else 1)
        sizes = {**size, "samples": samples}
        write_stage(folder / f"stage_{stage}", stage, **sizes)
    if arguments.shape != "smollm2":
        write_parts(folder, arguments.shape, arguments.device)
        return
    script = ROOT / "examples" / "assemble_models.py"
    command: list[str | Path] = [
        sys.executable,
        script,
        "--out",
        folder,
        "--only",
        "smollm2",
        "vision_tower",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    (folder / "smollm2").rename(folder / "language_model")


def run_side(arguments: argparse.Namespace) -> Found:
    """Returns what one side measured, in the process that is its own."""
    from benchmarks.train.sides import Setting, run_ours

    setting = Setting(
        folder=arguments.folder,
        device=arguments.device,
        shape=arguments.shape,
        stage=arguments.stages[0],
        seed=arguments.seed,
    )
    if arguments.side == "ours":
        return run_ours(setting)
    from benchmarks.train.usual import run_usual

    return run_usual(setting, groups_by_length=arguments.side == "grouped")


COLUMNS = (
    *("stage", "side", "target tokens/s", "padding", "waiting for data", "steps counted"),
    *("ours : it, by the clock", "by processor time", "MFU", "peak GPU memory, GiB"),
)


def compare(arguments: argparse.Namespace, folder: Path, stage: int) -> list[list[str]]:
    """Lets the sides take turns; returns the rows of those that did it all."""
    found: dict[str, list[Found]] = {side: [] for side in arguments.sides}
    print(
        f"stage {stage}, {arguments.shape} on {arguments.device}, {arguments.rounds} round(s) of "
        f"one epoch; load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    for seed in range(arguments.rounds):
        for side in list(found):
            result = measured(arguments, folder, stage, side, seed)
            if result is None:
                print(f"  {SIDES[side]}: FAILED", flush=True)
                del found[side]
                continue
            found[side].append(result)
            if seed == arguments.rounds - 1:  # at once: the whole may be stopped before its end
                print(f"  {', '.join(row(stage, side, median(found[side])))}", flush=True)
    rows = []
    for side, theirs in found.items():
        middle = median(theirs)
        if side != "ours" and "ours" in found:
            pairs = list(zip(found["ours"], theirs, strict=True))
            for name in ("targets_per_second", "targets_per_processor_second"):
                middle[f"ratio_of_{name}"] = statistics.median(
                    ours[name] / it[name] for ours, it in pairs
                )
        rows.append(row(stage, side, middle))
    return rows


def row(stage: int, side: str, middle: Found) -> list[str]:
    """Returns the row of a side's figures; what was not measured is empty."""

    def told(name: str, form: str) -> str:
        return format(middle[name], form) if name in middle else ""

    return [
        *(str(stage), SIDES[side]),
        *(told("targets_per_second", ",.0f"), told("padding_ratio", ".1%")),
        *(told("wait_ratio", ".2%"), told("steps", ".0f")),
        told("ratio_of_targets_per_second", ".2f"),
        told("ratio_of_targets_per_processor_second", ".2f"),
        *(told("mfu_ratio", ".1%"), told("peak_gib", ".1f")),
    ]


def median(results: list[Found]) -> Found:
    """Returns the median of each figure over the rounds."""
    return {name: statistics.median(found[name] for found in results) for name in results[0]}


def measured(
    arguments: argparse.Namespace, folder: Path, stage: int, side: str, seed: int
) -> Found | None:
    """Returns what a side measured; None where it fails, once its last words are printed."""
    # Threads that spin while they wait steal the core from the thread that they wait for.
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, __file__, "--side", side, "--seed", str(seed)]
    command += ["--folder", str(folder), "--stages", str(stage)]
    command += ["--shape", arguments.shape, "--device", arguments.device]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        why = "killed, for memory? " if done.returncode == -9 else ""
        said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        print(f"{side} failed ({why}{done.returncode}):\n{said}", file=sys.stderr, flush=True)
        return None
    found: Found = json.loads(lines[-1].removeprefix("RESULT "))
    return found


if __name__ == "__main__":
    main()
