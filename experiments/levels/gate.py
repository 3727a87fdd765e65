"""Does the gate ask for other levels in other tasks? Stage 2 on a mix of tasks, and what it weighs.

The model of stage 1 goes on with right answers alone, as many samples of each of three tasks:
captions ("The picture shows a red circle."), short answers ("red") and text without a picture,
which the gate never sees. Projector, gate and the small language model learn; the vectors do not.
Then held-out pictures are asked all the questions of the first two tasks, four of each.

The measures, fixed before any run. How far two questions are apart is the total variation distance
(0 to 1) between the weights that the gate gives the local vectors, each the mean over the pictures.

(tasks)    the mean distance of two questions of different tasks, less that of two questions of one
           task: above 0 if the gate tells the tasks apart, and not only the words of questions;
(before)   the same with the gate as it was drawn, before stage 2;
(level)    the mean local level that captions ask for, sum of l w_l, less that of short answers;
(pictures) the mean distance of a picture's weights from their mean over the pictures, of the same
           question: how much the gate looks at the picture at all.

Each has the 95 % interval of a bootstrap over the pictures, over seeds that of Student's t.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.levels.cells import shortened, stored_features
from experiments.levels.data import COLOURS, Picture, curate, turns
from experiments.levels.intervals import Value
from schemas.progress import show_progress
from schemas.storage import commit_text
from training.config import DataConfig, ParallelConfig
from training.data.dataset import TrainDataset
from training.data.lengths import measure_lengths
from training.data.loader import load_batches
from training.engine.deepspeed import start_distributed
from training.engine.precision import dtype_of
from training.evaluation.control import batch_results, exchanged_samples
from training.evaluation.levels import sample_numbers
from training.evaluation.validation import validation_order
from training.loss import batch_loss
from training.parts import load_folder
from training.recipes import demo_finetune
from training.train import train

CAPTIONS = (
    "What is in this picture?",
    "Describe the picture.",
    "Write a caption for this picture.",
    "What does the picture show?",
)
SHORT = (
    "What color is the shape?",
    "Which color does the shape have?",
    "What shape is in the image?",
    "Which shape does the image contain?",
)
TEXT = ("Which word is the color: {}?", "Which word is the shape: {}?")
QUESTIONS = (*CAPTIONS, *SHORT)
TASK = (*(0 for _ in CAPTIONS), *(1 for _ in SHORT))
"""Of each question."""
TOKENS = 640
"""Of a step's sequence: about 12 samples."""

Weights = NDArray[np.float64]
"""(pictures, questions, N - 1) as the gate gave them."""


def answer(picture: Picture, question: int) -> str:
    """Returns what is right to say to a question about a picture."""
    if question < len(CAPTIONS):
        return f"The picture shows {picture.caption}."
    _, colour, shape = picture.caption.split()
    return colour if question - len(CAPTIONS) < len(SHORT) // 2 else shape


def mixed(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    """Returns the samples of stage 2, one of each picture, of the three tasks in turn."""
    rows: list[dict[str, Any]] = []
    for place, picture in enumerate(pictures):
        task, number = place % 3, place // 3
        if task == 2:
            words = picture.caption.split()[1:]
            asked = TEXT[number % 2].format(" or ".join(sorted(words)))
            said = next(word for word in words if (word in COLOURS) == (number % 2 == 0))
            rows.append({"id": f"text {number}", "conversations": turns(asked, said)})
            continue
        question = number % 4 + task * len(CAPTIONS)
        rows.append(_asked(picture, question))
    return rows


def _asked(picture: Picture, question: int) -> dict[str, Any]:
    """Returns a sample: the picture, a question, the right answer."""
    return {
        "id": f"{picture.path.stem} {question}",
        "image": picture.path.name,
        "conversations": turns(f"<image>\n{QUESTIONS[question]}", answer(picture, question)),
    }


def run_gate(
    stage_1: Path,
    out: Path,
    train_set: Sequence[Picture],
    held: Sequence[Picture],
    steps: int,
    seed: int,
) -> None:
    """Trains and measures a gate, unless its result stands.

    Args:
        stage_1: folder of the model that it starts from.
        out: folder of all cells; the gate's is named after that of `stage_1`.
    """
    folder = out / f"gate_{stage_1.parent.parent.name}"
    if (folder / "gate.json").exists():
        return
    learnt, asked = out / "data" / "tasks", out / "data" / f"tasks_held_out_{len(held)}"
    curate(learnt, mixed(train_set), train_set[0].path.parent)
    rows = [_asked(picture, question) for picture in held for question in range(len(QUESTIONS))]
    curate(asked, rows, held[0].path.parent)
    config = shortened(demo_finetune(), TOKENS, out / "features_tasks", steps, seed)
    config = replace(config, epochs=4)
    train(config, [str(learnt)], str(folder / "run"), str(stage_1))
    before, _ = weights_of(stage_1, asked, out)
    after, losses = weights_of(folder / "run" / "model", asked, out)
    values = {
        "cell": stage_1.parent.parent.name,
        "before": before.tolist(),
        "after": after.tolist(),
        "losses": losses,
    }
    commit_text(str(folder / "gate.json"), json.dumps(values) + "\n")


def weights_of(
    model_folder: Path, asked: Path, out: Path
) -> tuple[Weights, dict[str, list[float]]]:
    """Returns the gate's weights for held-out questions, and the losses of their right answers.

    Returns:
        (pictures, questions, N - 1), and by task the losses, in nats a token, with the right
        picture and with an exchanged one.
    """
    start_distributed()
    parts = load_folder(str(model_folder), dtype_of(ParallelConfig()))
    dataset = TrainDataset([str(asked)])
    encoder = parts.encoder(DataConfig(form="conversation", tokens_per_sequence=1024))
    lengths = measure_lengths(dataset, encoder, show_progress("tokenising", is_active=False))
    order = validation_order(range(len(dataset)), lengths, 1024)
    names = {dataset[i].key: (dataset[i].sample_id or "").split() for i in range(len(dataset))}
    store = stored_features(parts, dataset, "conversation", out / "features_tasks_held_out")
    model: Any = parts.model.eval()
    found: dict[tuple[str, int], list[float]] = {}
    sums = np.zeros((2, 2, 2))  # exchanged, task, loss and targets
    for exchanged in (0, 1):
        others = exchanged_samples(dataset, range(len(dataset))) if exchanged else None
        rows = parts.rows(dataset, encoder, features=store, pictures_from=others)
        with torch.no_grad():
            for batch in load_batches(rows, order, workers=0, pin_memory=False):
                loss = batch_loss(model, batch, model.config.num_levels)
                for key, result in batch_results(batch, loss).items():
                    task = TASK[int(names[key][1])]
                    sums[exchanged, task] += result.loss, result.targets
                if exchanged:
                    continue
                is_align = batch.inputs["input_ids"] == model.config.align_token_id
                owners = sample_numbers(batch)[is_align].tolist()
                assert loss.gate_weights is not None
                for number, weights in zip(owners, loss.gate_weights.tolist(), strict=True):
                    picture, question = names[batch.keys[number]]
                    found[picture, int(question)] = weights
    pictures = sorted({picture for picture, _ in found})
    table = [[found[picture, q] for q in range(len(QUESTIONS))] for picture in pictures]
    losses = {
        task: [float(sums[e, place, 0] / sums[e, place, 1]) for e in (0, 1)]
        for place, task in enumerate(("captions", "short answers"))
    }
    return np.array(table), losses


def apart(means: Weights) -> float:
    """Returns the measure `tasks` of the weights of questions, (questions, N - 1)."""
    distances: dict[bool, list[float]] = {True: [], False: []}
    for one, other in combinations(range(len(QUESTIONS)), 2):
        distance = float(np.abs(means[one] - means[other]).sum() / 2)
        distances[TASK[one] == TASK[other]].append(distance)
    return float(np.mean(distances[False]) - np.mean(distances[True]))


def level_asked(means: Weights) -> float:
    """Returns the measure `level` of the weights of questions, (questions, N - 1)."""
    level = means @ np.arange(1, means.shape[1] + 1)
    task = np.array(TASK)
    return float(level[task == 0].mean() - level[task == 1].mean())


def gate_measures(values: dict[str, Any], seed: int = 0) -> dict[str, Value]:
    """Returns the measures of a gate, each with the bootstrap's interval over the pictures."""
    after, before = np.array(values["after"]), np.array(values["before"])
    drawn = np.random.default_rng(seed).integers(0, len(after), size=(1000, len(after)))

    def interval(weights: Weights, of: Any) -> Value:
        draws = [of(weights[rows].mean(axis=0)) for rows in drawn]
        low, high = np.quantile(draws, (0.025, 0.975))
        return of(weights.mean(axis=0)), float(low), float(high)

    spread = np.abs(after - after.mean(axis=0)).sum(axis=2).mean(axis=1) / 2  # (pictures,)
    bounds = np.quantile(spread[drawn].mean(axis=1), (0.025, 0.975))
    return {
        "tasks": interval(after, apart),
        "before": interval(before, apart),
        "level": interval(after, level_asked),
        "pictures": (float(spread.mean()), float(bounds[0]), float(bounds[1])),
    }
