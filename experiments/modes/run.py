"""Does alignment help? The five modes, trained alike from several seeds, on real small data.

    python experiments/modes/run.py --work demo/modes                 # all seeds; goes on
    python experiments/modes/run.py --work demo/modes --write-docs    # and writes docs/modes.md
    python experiments/modes/run.py --quick                           # does it run? two minutes

For each seed, stage 1 runs with level vectors and without, then stage 2 runs in each mode, with the
trainer of this project. The four modes that have vectors share one stage 1: it gives each pair the
vector of its own level whatever the mode. What is measured stands in retrieval.py, what
is made of it in report.py. Each finished cell is a file of the work folder; two calls
with different --seeds may run at once, or one with `--modes none` and one with the others.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.modes import data, report
from schemas.memory import keep_freed_memory
from schemas.progress import show_progress
from training.config import (
    AlignmentMode,
    DataConfig,
    LoraConfig,
    OptimizerConfig,
    SampleForm,
    TrainConfig,
)
from training.data.dataset import TrainDataset
from training.data.lengths import measure_lengths
from training.engine.deepspeed import start_distributed
from training.evaluation import retrieval
from training.evaluation.validation import validation_loss, validation_order
from training.parts import Assembled, load_folder
from training.recipes import ablation, demo_finetune, demo_pretrain
from training.train import train

MODES: tuple[AlignmentMode, ...] = get_args(AlignmentMode)
NUM_LEVELS = 8
TOKENS = 512
"""Of a packed sequence, one a step."""
LORA_RANK = 16
VALIDATION_SAMPLES = 96
CHECK_SEED = 7
FORMS: tuple[tuple[SampleForm, int | None], ...] = (("caption", NUM_LEVELS), ("conversation", None))
"""How models of stage 1 and 2 are asked, and which level they are told."""
RATE_STAGE_1 = 1e-3
RATE_STAGE_2 = 5e-4
"""Highest learning rates: the paper's, and a usual one for LoRA. Neither was searched for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What all cells share."""

    work: Path
    steps: tuple[int, int]
    """Optimizer steps of stage 1 and 2."""
    groups: int
    """Groups of pictures that are asked about; 0 for all."""

    def settings(self) -> dict[str, Any]:
        """Returns what a cell's figures depend on beside its name."""
        return {"steps": list(self.steps), "groups": self.groups}

    def cell(self, seed: int, name: str) -> Path:
        """Returns the file of a cell."""
        return self.work / "cells" / f"seed{seed}_{name}.json"

    def run_folder(self, seed: int, name: str) -> Path:
        """Returns the folder of a training run."""
        return self.work / "runs" / f"seed{seed}_{name}"


def main() -> None:
    """Runs the cells that are not there yet, then reports."""
    options = parsed_arguments()
    if options.quick:
        with tempfile.TemporaryDirectory(prefix="aligngpt-modes-") as folder:
            run_quickly(Path(folder))
        return
    experiment = Experiment(work=options.work, steps=tuple(options.steps), groups=options.groups)
    options.work.mkdir(parents=True, exist_ok=True)
    data.prepare(options.work, options.shuffled)
    run_cells(experiment, options.seeds, options.modes)
    modes = tuple(mode for mode in MODES if mode in options.modes)
    if not report.can_report(modes, options.seeds):
        print("no report: it needs mode none, another one, and 2 to 10 seeds")
        return
    findings = report.Findings.read(options.work, options.seeds, modes)
    text = report.markdown(findings, data.wrong_by_level(options.work), options.shuffled)
    print(text)
    if options.write_docs:
        report.write(options.docs, findings, text)


def parsed_arguments() -> argparse.Namespace:
    """Returns what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=data.ROOT / "demo" / "modes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, nargs=2, default=[150, 30], metavar=("S1", "S2"))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, metavar="MODE")
    parser.add_argument("--groups", type=int, default=0, help="groups asked about; 0: all")
    parser.add_argument("--shuffled", type=float, default=0.3, help="share of wrong captions")
    parser.add_argument("--write-docs", action="store_true", help="write the page and its plot")
    parser.add_argument("--docs", type=Path, default=data.ROOT / "docs")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pairs")
    options = parser.parse_args()
    options.work = options.work.resolve()
    return options


def run_quickly(work: Path) -> None:
    """Runs everything once, small, and checks two things that the experiment rests on."""
    data.prepare(work, 0.3, limit=300)
    experiment = Experiment(work=work, steps=(2, 2), groups=1)
    run_cells(experiment, [0, 1], MODES)
    findings = report.Findings.read(work, [0, 1], MODES)
    print(report.markdown(findings, data.wrong_by_level(work), 0.3))
    report.write(work, findings, "")
    check_that_stage_1_is_shared(experiment)
    check_scores(experiment)


def run_cells(experiment: Experiment, seeds: list[int], modes: Sequence[AlignmentMode]) -> None:
    """Trains and measures whatever is missing of these modes."""
    keep_freed_memory()
    start_distributed()
    for seed in seeds:
        started = time.monotonic()
        for name in sorted({"none" if mode == "none" else "levels" for mode in modes}):
            stage_1(experiment, seed, name)
        for mode in modes:
            stage_2(experiment, seed, mode)
            print(f"seed {seed} {mode}: {time.monotonic() - started:.0f} s", flush=True)
        if all(is_done(experiment.cell(seed, mode), experiment) for mode in MODES):
            for folder in (experiment.work / "runs").glob(f"seed{seed}_*"):
                shutil.rmtree(folder)


def stage_1(experiment: Experiment, seed: int, name: str) -> None:
    """Pre-trains with level vectors ("levels") or without ("none") and measures the result."""
    cells = {level: experiment.cell(seed, f"stage1_{name}_{level}") for level in told(name)}
    needed = [experiment.cell(seed, mode) for mode in MODES if (mode == "none") == (name == "none")]
    if all(is_done(path, experiment) for path in (*cells.values(), *needed)):
        return
    began = time.process_time()
    folder = experiment.run_folder(seed, name)
    config = stage_1_config(experiment, seed, "none" if name == "none" else "adaptive")
    train(config, [str(experiment.work / "train")], str(folder))
    if all(is_done(path, experiment) for path in cells.values()):
        return
    parts = load_folder(str(folder / "model"), torch.bfloat16)
    parts.model.eval()
    for level, path in cells.items():
        if not is_done(path, experiment):
            found = asked(experiment, parts, "caption", level)
            write_cell(path, experiment, found, began)
            began = time.process_time()


def told(name: str) -> tuple[int | None, ...]:
    """Returns the levels that a model of stage 1 is told when it is asked."""
    return (None,) if name == "none" else (1, NUM_LEVELS)


def stage_2(experiment: Experiment, seed: int, mode: AlignmentMode) -> None:
    """Fine-tunes in a mode and measures the result."""
    path = experiment.cell(seed, mode)
    if is_done(path, experiment):
        return
    began = time.process_time()
    first = experiment.run_folder(seed, "none" if mode == "none" else "levels") / "model"
    init = experiment.run_folder(seed, f"stage2_{mode}_init")
    out = experiment.run_folder(seed, f"stage2_{mode}")
    write_in_mode(first, mode, init)
    train(
        stage_2_config(experiment, seed, mode),
        [str(experiment.work / "instructions")],
        str(out),
        str(init),
    )
    parts = load_folder(str(out / "model"), torch.bfloat16)
    parts.model.eval()
    found = asked(experiment, parts, "conversation", None)
    found["validation_loss"] = held_out_loss(parts, experiment.work / "instructions_validation")
    write_cell(path, experiment, found, began)
    for folder in (init, out):
        shutil.rmtree(folder)


def stage_1_config(experiment: Experiment, seed: int, mode: AlignmentMode) -> TrainConfig:
    """Returns the demo's stage 1 with a smaller tower, more steps, and nothing held out."""
    models = experiment.work / "models"
    base = demo_pretrain(str(models))
    # As in the paper, and as it was when the published figures were made.
    model = replace(base.model, connector="mlp2x_gelu", projector_start="paper")
    base = replace(base, model=model, data=replace(base.data, vision_features="compute"))
    base = replace(
        base,
        seed=seed,
        model=replace(
            base.model,
            language_model=str(models / "language_model"),
            vision_tower=f"timm:local-dir:{models}/small_tower",
        ),
        data=replace(base.data, validation_ratio=0.0, tokens_per_sequence=TOKENS),
        optimizer=OptimizerConfig(learning_rate=RATE_STAGE_1, warmup_ratio=0.1),
        parallel=replace(base.parallel, zero_stage=1),
        epochs=1,
        max_steps=experiment.steps[0],
    )
    return ablation(lambda: base, mode, NUM_LEVELS)


def stage_2_config(experiment: Experiment, seed: int, mode: AlignmentMode) -> TrainConfig:
    """Returns the demo's stage 2, the language model learning by LoRA."""
    base = stage_1_config(experiment, seed, "adaptive")
    base = replace(
        base,
        data=replace(base.data, form="conversation"),
        optimizer=OptimizerConfig(learning_rate=RATE_STAGE_2, warmup_ratio=0.1),
        lora=LoraConfig(rank=LORA_RANK),
        train_parts=demo_finetune().train_parts,
        max_steps=experiment.steps[1],
    )
    return ablation(lambda: base, mode, NUM_LEVELS)


def write_in_mode(model_folder: Path, mode: AlignmentMode, out: Path) -> None:
    """Writes a model of stage 1 as one of another mode; weights of a gate may be left over."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(model_folder, out)
    path = out / "config.json"
    config = {**json.loads(path.read_text()), "alignment_mode": mode}
    path.write_text(json.dumps(config, indent=2) + "\n")


def held_out_groups(
    experiment: Experiment, parts: Assembled
) -> tuple[TrainDataset, list[list[int]]]:
    """Returns the held-out pairs, and those that are asked about."""
    dataset = TrainDataset([str(experiment.work / "validation")])
    allowed = data.far_from_training(experiment.work)
    groups = retrieval.candidate_groups(dataset, allowed, parts.processor.tokenizer)
    return dataset, groups[: experiment.groups or None]


def asked(
    experiment: Experiment, parts: Assembled, form: SampleForm, level: int | None
) -> dict[str, Any]:
    """Returns what a model makes of the held-out pictures."""
    dataset, groups = held_out_groups(experiment, parts)
    scores = retrieval.score_groups(parts, dataset, groups, form, level)
    found: dict[str, Any] = {"pictures": retrieval.measured(scores)}
    weights = [group.gate_weights for group in scores if group.gate_weights is not None]
    if weights:
        every = torch.cat(weights).float()
        found["gate_mean"] = every.mean(dim=0).tolist()
        found["gate_deviation"] = every.std(dim=0).tolist()
    return found


def held_out_loss(parts: Assembled, folder: Path) -> float:
    """Returns the loss on the held-out instructions, in nats per target token."""
    dataset = TrainDataset([str(folder)])
    config = DataConfig(form="conversation", tokens_per_sequence=TOKENS)
    encoder = parts.encoder(config)
    lengths = measure_lengths(dataset, encoder, show_progress("", is_active=False))
    first = dataset.by_key[:VALIDATION_SAMPLES].tolist()
    order = validation_order(first, lengths, TOKENS)
    model: Any = parts.model
    return validation_loss(model, parts.rows(dataset, encoder), order, NUM_LEVELS).loss


def check_that_stage_1_is_shared(experiment: Experiment) -> None:
    """Makes sure that stage 1 in mode global gives what it gives in mode adaptive."""
    found = []
    pairs = [str(experiment.work / "train")]
    for mode in ("adaptive", "global"):
        folder = experiment.run_folder(CHECK_SEED, f"check_{mode}")
        train(stage_1_config(experiment, CHECK_SEED, mode), pairs, str(folder))
        found.append(load_folder(str(folder / "model"), torch.bfloat16).model.state_dict())
    for name in found[1]:
        if not torch.equal(found[0][name], found[1][name]):
            sys.exit(f"stage 1 is another in mode global: {name} differs")
    print("checked: stage 1 gives the same weights in modes adaptive and global")


def check_scores(experiment: Experiment) -> None:
    """Makes sure that captions score what one pass over picture and caption gives them."""
    folder = experiment.run_folder(CHECK_SEED, "check_adaptive") / "model"
    parts = load_folder(str(folder), torch.float32)
    parts.model.eval()
    dataset, groups = held_out_groups(experiment, parts)
    for form, level in FORMS:
        worst = retrieval.error_of_scores(parts, dataset, groups[0], form, level)
        if worst > 1e-3:
            sys.exit(f"scores of form {form} are wrong by {worst:.1e} nats")
    print("checked: scores are those of one pass over picture and caption")


def is_done(path: Path, experiment: Experiment) -> bool:
    """Returns whether a cell is there; one of other settings ends the script."""
    if not path.exists():
        return False
    if json.loads(path.read_text())["settings"] != experiment.settings():
        sys.exit(f"{path} was made with other settings: choose another --work")
    return True


def write_cell(path: Path, experiment: Experiment, found: dict[str, Any], began: float) -> None:
    """Writes a cell, whole or not at all, with the core's time since it began."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    cell = {"settings": experiment.settings(), "cpu_seconds": time.process_time() - began, **found}
    aside.write_text(json.dumps(cell) + "\n")
    aside.replace(path)


if __name__ == "__main__":
    main()
