"""The pictures of `run.py`, their captions, and which of these are wrong."""

import hashlib
import importlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import run

COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what it shows."""

    path: Path
    caption: str


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


def write_captioned(out: Path, samples: Sequence[tuple[Picture, str, int]]) -> None:
    """Curates captioned pictures with given levels into `out`, unless it stands."""
    rows = [
        {
            "id": f"{picture.path.stem}",
            "image": picture.path.name,
            "similarity": level - 1,
            "conversations": turns("<image>\nWhat is in this picture?", caption),
        }
        for picture, caption, level in samples
    ]
    levels = str(max(level for _, _, level in samples))
    flags = ("--read.as-captions", "--levels.num-levels", levels)
    curate(out, rows, samples[0][0].path.parent, *flags)


def turns(question: str, answer: str) -> list[dict[str, str]]:
    """Returns a question and its answer as LLaVA's files have them."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def curate(out: Path, rows: Sequence[dict[str, Any]], pictures: Path, *flags: str) -> None:
    """Curates rows of a LLaVA file into `out`, unless it stands.

    Args:
        pictures: their folder.
    """
    if (out / "manifest.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.parent / f"{out.name}.json"
    file.write_text(json.dumps(rows))
    words = [
        *("curate", "--recipe", "llava_instructions", "--pairs", str(file), "--out", str(out)),
        *("--read.image-folder", str(pictures), *flags),
    ]
    print("$ aligngpt-curate", *words, flush=True)
    if run(words) != 0:
        sys.exit(f"{out} could not be curated")
