"""Rebuilds the demo's own training files: questions that only a picture answers, and captions.

    questions.json        stage 2: short questions about the stamps and easy-VQA's shapes
    shape_captions.json   stage 1, beside the curated pairs: what the shapes are

The words alone never tell an answer: "Is this a pig?" stands once with a pig and once with another
stamp, every second colour or shape that is asked for is there, and nothing is asked that an earlier
turn has told. None of the held-out pictures is among them. Run it after `make_instructions.py`:

    pip install easy-vqa
    python examples/instructions/make_questions.py
"""

import argparse
import csv
import hashlib
import json
import random
from pathlib import Path

from make_instructions import (
    COLOR_NAMES,
    COLOR_QUESTIONS,
    CORPUS,
    HERE,
    IS_THERE,
    OPEN_QUESTIONS,
    SHAPE_NAMES,
    SHAPE_QUESTIONS,
    SHORT_ANSWER,
    TOPICS,
    Sample,
    Shape,
    Turn,
    about,
    bundled,
    known_shapes,
    sample,
    thing,
    which_group,
)

SHAPES = 800
SHAPE_CAPTIONS = 500
"""The other pictures of shapes are seen in stage 2 alone."""
NAMES, GROUPS, OPEN = 120, 400, 150
"""Names that are asked for, stamps whose group is asked for, and such as are to be described."""
ASKED_AT_MOST = 2
"""Questions about the colour, and about the shape, of one picture."""
WORD_SHARE = 0.3
"""Of these questions; the others are for yes or no."""
BEST_LEVEL = 7
"""`similarity` counts from 0: the captions of shapes are true by construction."""


def about_shape(shape: Shape, chance: random.Random) -> list[Turn]:
    """Returns questions about a shape's colour and about its shape, in turn."""
    colors = about_property(shape.color, COLOR_NAMES, COLOR_QUESTIONS, chance)
    shapes = about_property(shape.shape, SHAPE_NAMES, SHAPE_QUESTIONS, chance)
    sides = [colors, shapes]
    chance.shuffle(sides)
    turns = []
    while any(sides):
        turns += [side.pop(0) for side in sides if side]
    return turns


def about_property(
    own: str, names: tuple[str, ...], questions: tuple[str, ...], chance: random.Random
) -> list[Turn]:
    """Returns questions about one property, none of which the answers before it tell."""
    turns: list[Turn] = []
    others = chance.sample([name for name in names if name != own], ASKED_AT_MOST)
    for other in others:
        if chance.random() < WORD_SHARE:
            return [*turns, (chance.choice(questions), own.capitalize())]
        is_own = chance.random() < 0.5
        asked = own if is_own else other
        noun = asked if names is SHAPE_NAMES else f"{asked} shape"
        turns.append((chance.choice(IS_THERE).format(thing=noun), "Yes" if is_own else "No"))
        if is_own:
            break
    return turns


def both_answers(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns "Is this a …?" for each stamp that has a name, once answered Yes and once No.

    Each name is asked of its own stamp and of one other, each stamp is shown with its own name and
    with one other: neither tells the answer.
    """
    named = [stamp for stamp in stamps if thing(stamp["caption"]) is not None]
    samples = []
    shown = chance.sample(named, NAMES)
    for stamp, other in zip(shown, [*shown[1:], shown[0]], strict=True):
        own = thing(stamp["caption"])
        for picture, answer in ((stamp, "Yes"), (other, "No")):
            turn = (f"Is this {own}?{SHORT_ANSWER}", answer)
            samples.append(about(picture, f"is_this_{answer.lower()}", [turn]))
    return samples


def about_stamps(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns questions for the group of some stamps, and for what some show."""
    grouped = [stamp for stamp in stamps if stamp["topic"] in TOPICS]
    chosen = chance.sample(grouped, GROUPS)
    samples = [about(stamp, "group", [which_group(stamp["topic"], chance)]) for stamp in chosen]
    for stamp in chance.sample(stamps, OPEN):
        samples.append(about(stamp, "open", [(chance.choice(OPEN_QUESTIONS), stamp["caption"])]))
    return samples


def train_shapes(chance: random.Random) -> list[Shape]:
    """Returns easy-VQA's training pictures, those bundled already first; none that is held out."""
    held_out = (HERE / "shapes" / "validation").glob("*.png")
    seen = {hashlib.sha256(path.read_bytes()).digest() for path in held_out}
    there = {path.name for path in (HERE / "shapes" / "train").glob("*.png")}
    found = list(known_shapes("train", seen, chance))
    return sorted(found, key=lambda shape: shape.picture.name not in there)[:SHAPES]


def write(samples: list[Sample], path: Path) -> None:
    """Writes a LLaVA file."""
    path.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(samples)} samples in {path}")


def main() -> None:
    """Rebuilds both files beside this script."""
    argparse.ArgumentParser(
        description="Rebuilds the demo's questions and captions of shapes, beside this script."
    ).parse_args()
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    chance = random.Random("questions 2")
    stamps = [row for row in rows if row["split"] == "train"]
    samples = both_answers(stamps, chance)
    samples += about_stamps(stamps, chance)
    captions: list[Sample] = []
    for shape in train_shapes(chance):
        image, name = bundled(shape, "train"), shape.picture.stem
        (first, answer), *others = about_shape(shape, chance)
        turns = [(first + SHORT_ANSWER, answer), *others]
        samples.append(sample(f"shape_question_{name}", turns, image))
        caption = [("What is in this picture?", f"A {shape.color} {shape.shape}.")]
        entry = sample(f"shape_caption_{name}", caption, image)
        captions.append({**entry, "similarity": BEST_LEVEL})
    chance.shuffle(samples)
    write(samples, HERE / "questions.json")
    write(captions[:SHAPE_CAPTIONS], HERE / "shape_captions.json")


if __name__ == "__main__":
    main()
