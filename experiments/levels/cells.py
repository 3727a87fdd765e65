"""The training runs of `run.py`: how one is trained, and what is asked of it."""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experiments.levels.data import Picture, planted, write_captioned
from schemas.progress import show_progress
from schemas.storage import commit_text
from training.config import (
    AlignmentMode,
    DataConfig,
    LevelCurriculum,
    ParallelConfig,
    SampleForm,
    TrainConfig,
)
from training.data.dataset import TrainDataset
from training.data.features import FeatureStore
from training.data.lengths import measure_lengths
from training.engine.deepspeed import start_distributed
from training.engine.precision import dtype_of
from training.evaluation.control import exchanged_samples, sample_results
from training.evaluation.levels import told
from training.evaluation.validation import validation_order
from training.parts import Assembled, load_folder
from training.recipes import demo_pretrain
from training.run.vision import fill_store, open_store
from training.train import train

TOKENS = 146
"""Of a step's sequence: 16 pairs of about 9 tokens."""
PAIRS_PER_STEP = 16
RATE = 1e-3
"""Highest learning rate of both stages: the paper's for stage 1. Not searched for."""


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

    @classmethod
    def named(cls, name: str) -> "Cell":
        """Returns the cell that has a name."""
        arm, wrong, levels, steps, seed = name.rsplit("_", 4)
        return cls(arm, float(wrong), int(levels[1:]), int(steps), int(seed[1:]))

    @property
    def data(self) -> str:
        """Name of its dataset: arms of one seed share it."""
        return f"wrong_{self.wrong:g}_N{self.levels}_s{self.seed}"


def in_arm(config: TrainConfig, arm: str, levels: int, learns_language: bool) -> TrainConfig:
    """Returns a configuration of stage 1 as an arm has it."""
    language = ("language_model",) if learns_language else ()
    mode: AlignmentMode = "none" if arm in ("none", "upper_half") else "adaptive"
    vectors = () if mode == "none" else ("level_vectors",)
    config = replace(
        config,
        model=replace(config.model, alignment_mode=mode),
        train_parts=("projector", *vectors, *language),
    )
    half = levels // 2
    weights = (0.0,) * half + (1.0,) * (levels - half) if arm == "upper_half" else ()
    curriculum = CURRICULA.get(arm, "none")
    data = replace(config.data, level_weights=weights, level_curriculum=curriculum)
    return replace(config, data=data)


CURRICULA: dict[str, LevelCurriculum] = {
    "low_first": "low_first",
    "low_left_out": "low_left_out",
}
ARMS = ("levels", "none", "low_first", "low_left_out", "upper_half")


def small_language_model(out: Path, models: Path) -> Path:
    """Returns the folder of a new language model of two layers, with SmolLM2's tokenizer."""
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


def config_of(cell: Cell, out: Path, models: Path, num_pairs: int, is_small: bool) -> TrainConfig:
    """Returns the configuration of a cell's training: the demo's stage 1, changed."""
    base = demo_pretrain(str(models))
    language = small_language_model(out, models) if is_small else models / "smollm2"
    config = shortened(base, TOKENS, out / "features", cell.steps, cell.seed)
    model = replace(
        base.model,
        language_model=str(language),
        num_levels=cell.levels,
        projector_start="scaled",
    )
    epochs = -(-cell.steps * PAIRS_PER_STEP // num_pairs) + 1
    config = replace(config, model=model, epochs=epochs)
    return in_arm(config, cell.arm, cell.levels, is_small)


def shortened(base: TrainConfig, tokens: int, features: Path, steps: int, seed: int) -> TrainConfig:
    """Returns the demo's configuration of a stage for so many small steps, without its looks.

    Args:
        tokens: of a step's sequence.
        features: folder of what the tower gives.
    """
    return replace(
        base,
        data=replace(
            base.data,
            validation_ratio=0.0,
            tokens_per_sequence=tokens,
            vision_features_folder=str(features),
        ),
        optimizer=replace(
            base.optimizer, learning_rate=RATE, part_learning_rates={"projector": RATE}
        ),
        told_samples=0,
        max_steps=steps,
        seed=seed,
    )


def trained(cell: Cell, out: Path, models: Path, num_pairs: int, is_small: bool) -> Path:
    """Returns the model folder of a cell, trained now unless it is."""
    folder = out / cell.name / "run"
    config = config_of(cell, out, models, num_pairs, is_small)
    if not (folder / "model").is_dir():
        train(config, [str(out / "data" / cell.data)], str(folder))
    return folder / "model"


def stored_features(
    parts: Assembled, dataset: TrainDataset, form: SampleForm, folder: Path
) -> FeatureStore:
    """Returns what the tower gives for the pictures of a dataset, computed unless it is."""
    data = DataConfig(form=form, vision_features="store", vision_features_folder=str(folder))
    store = open_store(parts, replace(data, workers=0), folder)
    fill_store(store, parts, replace(data, workers=0), [(dataset, range(len(dataset)))])
    return store


def measure(model_folder: Path, held_out: Path, out: Path) -> dict[str, dict[str, list[float]]]:
    """Returns the loss of each held-out sample, by how it was asked; with it its targets.

    Asked are `told_1` and `told_N`, or `plain` of a model without levels, each also `_exchanged`.
    """
    start_distributed()
    parts = load_folder(str(model_folder), dtype_of(ParallelConfig()))
    dataset = TrainDataset([str(held_out)])
    encoder = parts.encoder(DataConfig(form="caption", tokens_per_sequence=512))
    lengths = measure_lengths(dataset, encoder, show_progress("tokenising", is_active=False))
    store = stored_features(parts, dataset, "caption", out / "features_held_out")
    others = exchanged_samples(dataset, range(len(dataset)))
    order = validation_order(list(others), lengths, 512)
    model: Any = parts.model
    levels = model.config.num_levels
    has_levels = model.config.has_align_token
    asked = {"told_1": 1, "told_N": levels} if has_levels else {"plain": 0}
    found = {}
    for suffix, pictures_from in (("", None), ("_exchanged", others)):
        rows = parts.rows(dataset, encoder, features=store, pictures_from=pictures_from)
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
        batch = self._rows[rows]
        return told(batch, self._level, self._align) if self._level else batch


def run(cell: Cell, options: argparse.Namespace, train_set: list[Picture]) -> None:
    """Trains and measures a cell, unless its result stands."""
    path = options.out / cell.name / "result.json"
    if path.exists():
        return
    samples = list(planted(train_set, cell.levels, cell.wrong, cell.seed))
    write_captioned(options.out / "data" / cell.data, samples)
    small = options.small_language
    model = trained(cell, options.out, options.models, len(train_set), small)
    losses = measure(model, options.out / "data" / f"held_out_N{cell.levels}", options.out)
    values = {
        "cell": {name: getattr(cell, name) for name in cell.__slots__},
        "losses": losses,
    }
    commit_text(str(path), json.dumps(values) + "\n")
