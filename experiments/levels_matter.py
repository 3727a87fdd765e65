"""Do the alignment levels matter to a model? The smallest setting in which it can be seen.

    pip install easy-vqa
    python examples/assemble_models.py --out demo/models                  # once
    python experiments/levels_matter.py --models demo/models --out runs/levels --seeds 0 1 2
    python experiments/levels_matter.py --out runs/levels --report       # of what is done

Pictures are easy-VQA's, one shape of one colour; a caption is "a red circle". Each training picture
has a level from 1 to N, as many of each, and the share of wrong captions falls from the worst level
to the best: ((N - l) / (N - 1)) to the power that makes the mean `--wrong`, so that none of level N
are wrong. The language model (SmolLM2) and the tower are frozen and what the tower gives is stored,
pooled to 2 x 2; projector and level vectors learn, about 16 pairs a step. With `--small-language`
the language model is a new one, of two layers of 128 numbers with SmolLM2's words, which learns,
too: it has no more to learn than these captions, and a step takes a small part of the time.

The measures, fixed before any run, all on held-out pictures with right captions, in nats per target
token, each with the 95 % interval of a bootstrap over the pictures:

(a) better   the loss of a model without levels, less that of one with levels that is told N:
             above 0 if levels keep wrong captions from spoiling what is learnt;
(b) trust    how much more it loses by an exchanged picture told N than told 1: above 0 if it trusts
             a picture less that it is told is badly aligned;
(c) told     the loss told 1 less the loss told N, with right pictures.

The paper's third claim, that the gate asks for other levels in other tasks, needs the second stage
and is not tested here. Over several seeds the mean is shown with the interval of Student's t over
the seeds. Every arm's losses, sample by sample, are kept in `OUT/ARM…/result.json`; what is done is
not done again. The arms beside `levels` and `none` are curricula and weights of docs/training.md.
"""

import argparse
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.stats import t

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
BIN = Path(sys.executable).parent
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
TOKENS = 146
"""Of a step's sequence: 16 pairs of about 9 tokens."""
PAIRS_PER_STEP = 16
PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RATE = "1e-3"
"""Highest learning rate of projector and vectors: the paper's for stage 1. Not searched for."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One training run."""

    arm: str
    wrong: float
    levels: int
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        parts = (self.arm, f"{self.wrong:g}", f"N{self.levels}", f"{self.steps}", f"s{self.seed}")
        return "_".join(parts)

    @property
    def data(self) -> str:
        """Name of its dataset: arms of one seed share it."""
        return f"wrong_{self.wrong:g}_N{self.levels}_s{self.seed}"


def flags_of(arm: str, levels: int, learns_language: bool = False) -> tuple[str, ...]:
    """Returns what an arm adds to the command."""
    half = levels // 2
    upper = ("--data.level-weights", *("0",) * half, *("1",) * (levels - half))
    language = ("language_model",) if learns_language else ()
    without = ("--model.alignment-mode", "none", "--train-parts", "projector", *language)
    told = ("--train-parts", "projector", "level_vectors", *language) if language else ()
    arms: dict[str, tuple[str, ...]] = {
        "levels": told,
        "none": without,
        "low_first": (*told, "--data.level-curriculum", "low_first"),
        "low_left_out": (*told, "--data.level-curriculum", "low_left_out"),
        "upper_half": (*without, *upper),
    }
    return arms[arm]


ARMS = ("levels", "none", "low_first", "low_left_out", "upper_half")


def pictures_of(split: str) -> list[Picture]:
    """Returns easy-VQA's pictures of which colour and shape are told, train or test."""
    easy_vqa = importlib.import_module("easy_vqa")
    questions, answers, numbers = getattr(easy_vqa, f"get_{split}_questions")()
    paths = getattr(easy_vqa, f"get_{split}_image_paths")()
    told: dict[int, dict[str, str]] = {}
    for _, answer, number in zip(questions, answers, numbers, strict=True):
        for kind, names in (("colour", COLOURS), ("shape", SHAPES)):
            if answer in names:
                told.setdefault(number, {})[kind] = answer
    return [
        Picture(Path(paths[number]), f"a {known['colour']} {known['shape']}")
        for number, known in sorted(told.items())
        if len(known) == 2
    ]


def held_out_pictures(train: Sequence[Picture], count: int) -> list[Picture]:
    """Returns pictures of the test split that stand in no training picture's file, too."""
    seen = {hashlib.sha256(picture.path.read_bytes()).digest() for picture in train}
    fresh = [
        picture
        for picture in pictures_of("test")
        if hashlib.sha256(picture.path.read_bytes()).digest() not in seen
    ]
    random.Random("held out").shuffle(fresh)
    return fresh[:count]


def wrong_shares(levels: int, mean: float) -> list[float]:
    """Returns the share of wrong captions of each level, from 1 on, whose mean is given.

    It falls from 1 at the worst level to 0 at the best, straight for a mean of one half.
    """
    if mean == 0:
        return [0.0] * levels
    ranks = [(levels - level) / (levels - 1) for level in range(1, levels + 1)]
    low, high = 1e-3, 1e3
    for _ in range(100):
        power = (low * high) ** 0.5
        is_too_many = sum(rank**power for rank in ranks) / levels > mean
        low, high = (power, high) if is_too_many else (low, power)
    return [rank**power for rank in ranks]


def planted(
    pictures: Sequence[Picture], levels: int, mean: float, seed: int
) -> Iterator[tuple[Picture, str, int]]:
    """Yields each picture with the caption that it is trained with, and its level."""
    chance = random.Random(f"{levels} {mean} {seed}")
    order = list(pictures)
    chance.shuffle(order)
    shares = wrong_shares(levels, mean)
    captions = sorted({picture.caption for picture in pictures})
    by_level: list[list[Picture]] = [order[level::levels] for level in range(levels)]
    for level, members in enumerate(by_level, start=1):
        wrong = round(shares[level - 1] * len(members))
        for place, picture in enumerate(members):
            others = [caption for caption in captions if caption != picture.caption]
            caption = chance.choice(others) if place < wrong else picture.caption
            yield picture, caption, level


def write_dataset(out: Path, samples: Sequence[tuple[Picture, str, int]]) -> None:
    """Curates captioned pictures with given levels into `out`, unless it stands."""
    if (out / "manifest.json").exists():
        return
    folder = samples[0][0].path.parent
    rows = [
        {
            "id": f"{picture.path.stem}",
            "image": picture.path.name,
            "similarity": level - 1,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is in this picture?"},
                {"from": "gpt", "value": caption},
            ],
        }
        for picture, caption, level in samples
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(rows))
    call(
        *("aligngpt-curate", "curate", "--recipe", "llava_instructions", "--read.as-captions"),
        *("--pairs", str(file), "--read.image-folder", str(folder), "--out", str(out)),
        *("--levels.num-levels", str(max(level for _, _, level in samples))),
    )


def call(name: str, *words: str) -> None:
    """Runs a command of this project; ends where it fails."""
    print("$", name, *words, flush=True)
    # Without this process's place among training processes, which measuring gave it.
    environment = {name: value for name, value in os.environ.items() if name not in PLACES}
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    subprocess.run([BIN / name, *words], check=True, env={**environment, "PYTHONPATH": paths})


def small_language_model(out: Path, models: Path) -> Path:
    """Returns the folder of a new language model of two layers, with SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = out / "language_model"
    if not (folder / "config.json").exists():
        tokenizer = AutoTokenizer.from_pretrained(models / "smollm2")
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def train(cell: Cell, out: Path, models: Path, num_pairs: int, is_small: bool) -> Path:
    """Returns the model folder of a cell, trained now unless it is; a stopped run goes on."""
    language = small_language_model(out, models) if is_small else models / "smollm2"
    epochs = -(-cell.steps * PAIRS_PER_STEP // num_pairs) + 1
    call(
        *("aligngpt-train", "pretrain", "--recipe", "demo_pretrain"),
        *("--data", f"{out}/data/{cell.data}", "--data.validation-ratio", "0"),
        *("--model.language-model", str(language)),
        *("--model.vision-tower", f"timm:local-dir:{models}/vision_tower"),
        *("--model.num-levels", str(cell.levels), "--model.projector-start", "scaled"),
        *("--optimizer.learning-rate", RATE, "--optimizer.part-learning-rates.projector", RATE),
        *("--data.tokens-per-sequence", str(TOKENS), "--data.sequences-per-step", "1"),
        *("--data.vision-features-folder", f"{out}/features", "--told-samples", "0"),
        *("--max-steps", str(cell.steps), "--epochs", str(epochs), "--seed", str(cell.seed)),
        *("--save-every-steps", "200", "--out", f"{out}/{cell.name}/run"),
        *flags_of(cell.arm, cell.levels, is_small),
    )
    return out / cell.name / "run" / "model"


def measure(model_folder: Path, held_out: Path) -> dict[str, dict[str, list[float]]]:
    """Returns the loss of each held-out sample, by how it was asked; with it its targets.

    Asked are `told_1` and `told_N`, or `plain` of a model without levels, each also `_exchanged`.
    """
    from schemas.progress import show_progress
    from training.config import DataConfig, ParallelConfig
    from training.data.dataset import TrainDataset
    from training.data.lengths import measure_lengths
    from training.engine.deepspeed import start_distributed
    from training.engine.precision import dtype_of
    from training.evaluation.control import exchanged_samples, sample_results
    from training.evaluation.validation import validation_order
    from training.parts import load_folder

    start_distributed()
    parts = load_folder(str(model_folder), dtype_of(ParallelConfig()))
    dataset = TrainDataset([str(held_out)])
    encoder = parts.encoder(DataConfig(form="caption", tokens_per_sequence=512))
    lengths = measure_lengths(dataset, encoder, show_progress("tokenising", is_active=False))
    others = exchanged_samples(dataset, range(len(dataset)))
    order = validation_order(list(others), lengths, 512)
    model: Any = parts.model
    levels = model.config.num_levels
    has_levels = model.config.has_align_token
    asked = {"told_1": 1, "told_N": levels} if has_levels else {"plain": 0}
    found = {}
    for suffix, pictures_from in (("", None), ("_exchanged", others)):
        rows = parts.rows(dataset, encoder, pictures_from=pictures_from)
        for name, level in asked.items():
            told_rows = ToldRows(rows, level, model.config.align_token_id)
            results = sample_results(model, cast(Any, told_rows), order, levels)
            found[name + suffix] = {
                key: [result.loss, float(result.targets)] for key, result in results.items()
            }
    return found


class ToldRows:
    """The batches of some rows, every sample told one level; 0 tells none."""

    def __init__(self, rows: Any, level: int, align_token_id: int) -> None:
        self._rows, self._level, self._align = rows, level, align_token_id

    def __getitem__(self, rows: Any) -> Any:
        """Returns a batch."""
        from training.evaluation.levels import told

        batch = self._rows[rows]
        return told(batch, self._level, self._align) if self._level else batch


def difference(
    more: dict[str, list[float]], less: dict[str, list[float]], seed: int = 0
) -> tuple[float, float, float]:
    """Returns by how much the first loss is above the second, with the bootstrap's interval."""
    keys = sorted(more.keys() & less.keys())
    gain = np.array([more[key][0] - less[key][0] for key in keys])
    targets = np.array([less[key][1] for key in keys])
    drawn = np.random.default_rng(seed).integers(0, len(keys), size=(2000, len(keys)))
    means = gain[drawn].sum(axis=1) / targets[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gain.sum() / targets.sum()), float(low), float(high)


def measures(
    result: dict[str, dict[str, list[float]]], plain: dict[str, dict[str, list[float]]] | None
) -> dict[str, tuple[float, float, float]]:
    """Returns the measures of the docstring that can be had of an arm.

    Args:
        plain: of the arm without levels, of the same data and seed.
    """
    if "told_N" not in result:
        return {"looks": difference(result["plain_exchanged"], result["plain"])}

    def worth(name: str) -> dict[str, list[float]]:
        other = result[f"{name}_exchanged"]
        return {key: [other[key][0] - loss, n] for key, (loss, n) in result[name].items()}

    found = {
        "trust": difference(worth("told_N"), worth("told_1")),
        "told": difference(result["told_1"], result["told_N"]),
        "looks": difference(result["told_N_exchanged"], result["told_N"]),
    }
    if plain is not None:
        found["better"] = difference(plain["plain"], result["told_N"])
    return found


def report(out: Path) -> list[dict[str, Any]]:
    """Returns the measures of all cells that are done, and shows them."""
    done = {}
    for path in sorted(out.glob("*/result.json")):
        values = json.loads(path.read_text())
        done[Cell(**values["cell"])] = values["losses"]
    rows: list[dict[str, Any]] = []
    for cell, losses in done.items():
        plain = done.get(Cell("none", cell.wrong, cell.levels, cell.steps, cell.seed))
        for name, (mean, low, high) in measures(losses, plain).items():
            rows.append({"cell": cell.name, "measure": name, "mean": mean, "95 %": [low, high]})
            print(f"{cell.name:32} {name:8} {mean:+.4f} ({low:+.4f} to {high:+.4f})")
    for line in over_seeds(done):
        print(line)
    (out / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def over_seeds(done: dict[Cell, Any]) -> Iterator[str]:
    """Yields a line for each measure of each arm: mean and interval over the seeds."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for cell, losses in done.items():
        plain = done.get(Cell("none", cell.wrong, cell.levels, cell.steps, cell.seed))
        for name, (mean, _, _) in measures(losses, plain).items():
            key = (cell.arm, cell.wrong, cell.levels, cell.steps, name)
            groups.setdefault(key, []).append(mean)
    for key, means in sorted(groups.items()):
        if len(means) > 1:
            half = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
            arm, wrong, levels, steps, name = key
            yield (
                f"{arm} wrong {wrong:g} N {levels} steps {steps}: {name} {np.mean(means):+.4f} "
                f"± {half:.4f} over {len(means)} seeds"
            )


def run(cell: Cell, options: argparse.Namespace, train_set: list[Picture]) -> None:
    """Trains and measures a cell, unless its result stands."""
    path = options.out / cell.name / "result.json"
    if path.exists():
        return
    samples = list(planted(train_set, cell.levels, cell.wrong, cell.seed))
    write_dataset(options.out / "data" / cell.data, samples)
    model = train(cell, options.out, options.models, len(train_set), options.small_language)
    losses = measure(model, options.out / "data" / f"held_out_N{cell.levels}")
    values = {
        "cell": {name: getattr(cell, name) for name in cell.__slots__},
        "losses": losses,
    }
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(values) + "\n")
    aside.replace(path)


def main() -> None:
    """Runs the cells that are not done yet, and shows all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, help="folder of assemble_models.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["levels", "none"])
    parser.add_argument("--wrong", nargs="+", type=float, default=[0.0, 0.3, 0.6])
    parser.add_argument("--levels", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pictures", type=int, default=2400, help="most to train on")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument(
        "--small-language", action="store_true", help="a new small language model, which learns"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the page and its picture")
    parser.add_argument("--report", action="store_true", help="show what is done, run nothing")
    options = parser.parse_args()
    if options.report and not options.out.is_dir():
        parser.error(f"--out {options.out} is not there: run the cells first, without --report")
    if not options.report:
        if options.models is None:
            parser.error("--models is missing: python examples/assemble_models.py --out FOLDER")
        train_set = pictures_of("train")
        random.Random("train").shuffle(train_set)
        train_set = train_set[: options.pictures]
        held = [
            (p, p.caption, options.levels) for p in held_out_pictures(train_set, options.held_out)
        ]
        write_dataset(options.out / "data" / f"held_out_N{options.levels}", held)
        for seed in options.seeds:
            for wrong in options.wrong:
                for arm in options.arms:
                    run(Cell(arm, wrong, options.levels, options.steps, seed), options, train_set)
    rows = report(options.out)
    if options.write_docs:
        from experiments.levels_matter_page import write_docs

        write_docs(options.out, rows, options.small_language)


if __name__ == "__main__":
    main()
