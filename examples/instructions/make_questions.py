"""Rebuilds the demo's own training files: questions that only a picture answers, and captions.

    questions.json        stage 2: short questions about the stamps and easy-VQA's shapes
    shape_captions.json   stage 1, beside the curated pairs: what the shapes are

The words alone never tell an answer: "Is this a pig?" stands once with a pig and once with another
stamp, every second colour or shape that is asked for is there, and nothing is asked that an earlier
turn has told. What is asked for yes or no is answered by what is seen first, as in "Blue, no": to
compare is easy once both sides are words, and each such answer teaches to look. None of the
held-out pictures is among them. Run it after `make_instructions.py`:

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
    seen_first,
    thing,
    which_group,
)

SHAPES = 800
SHAPE_CAPTIONS = 500
"""The other pictures of shapes are seen in stage 2 alone."""
NAMES, GROUPS, OPEN = 120, 400, 150
"""Names that are asked for, stamps whose group is asked for, and such as are to be described."""
SAMPLES_A_SHAPE = 2
"""Each with one question about its colour and one about its shape."""
WORD_SHARE = 0.3
"""Of these questions; the others are for yes or no."""
BEST_LEVEL = 7
"""`similarity` counts from 0: the captions of shapes are true by construction."""


def about_shape(shape: Shape, chance: random.Random) -> list[Turn]:
    """Returns a question about a shape's colour and one about its shape, in some order."""
    turns = [
        about_property(shape.color, COLOR_NAMES, COLOR_QUESTIONS, chance),
        about_property(shape.shape, SHAPE_NAMES, SHAPE_QUESTIONS, chance),
    ]
    chance.shuffle(turns)
    return turns


def about_property(
    own: str, names: tuple[str, ...], questions: tuple[str, ...], chance: random.Random
) -> Turn:
    """Returns a question about one property: which it is, or whether it is this one."""
    if chance.random() < WORD_SHARE:
        return chance.choice(questions), own.capitalize()
    is_own = chance.random() < 0.5
    asked = own if is_own else chance.choice([name for name in names if name != own])
    noun = asked if names is SHAPE_NAMES else f"{asked} shape"
    return chance.choice(IS_THERE).format(thing=noun), seen_first(own, is_own)


def both_answers(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns "Is this a …?" for some stamps with a name, once answered yes and once no.

    Each name is asked of its own stamp and of one other, each stamp is shown with its own name and
    with one other: neither tells the answer.
    """
    named = [s for s in stamps if s["topic"] in TOPICS and thing(s["caption"]) is not None]
    samples = []
    shown = chance.sample(named, NAMES)
    for stamp, other in zip(shown, [*shown[1:], shown[0]], strict=True):
        own = thing(stamp["caption"])
        for picture, is_true in ((stamp, True), (other, False)):
            answer = seen_first(TOPICS[picture["topic"]], is_true)
            turn = (f"Is this {own}?{SHORT_ANSWER}", answer)
            samples.append(about(picture, f"is_this_{'yes' if is_true else 'no'}", [turn]))
    return samples


def about_stamps(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns questions for the group of some stamps, and for what some show."""
    grouped = [stamp for stamp in stamps if stamp["topic"] in TOPICS]
    chosen = chance.sample(grouped, GROUPS)
    samples = [about(stamp, "group", [which_group(stamp["topic"], chance)]) for stamp in chosen]
    for stamp in chance.sample(stamps, OPEN):
        samples.append(about(stamp, "open", [(chance.choice(OPEN_QUESTIONS), stamp["caption"])]))
    return samples


def train_shapes() -> list[Shape]:
    """Returns easy-VQA's training pictures, those bundled already first; none that is held out."""
    held_out = (HERE / "shapes" / "validation").glob("*.png")
    seen = {hashlib.sha256(path.read_bytes()).digest() for path in held_out}
    there = {path.name for path in (HERE / "shapes" / "train").glob("*.png")}
    found = list(known_shapes("train", seen, random.Random("shapes")))
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
    chance = random.Random("questions 3")
    stamps = [row for row in rows if row["split"] == "train"]
    samples = both_answers(stamps, chance)
    samples += about_stamps(stamps, chance)
    captions: list[Sample] = []
    for shape in train_shapes():
        image, name = bundled(shape, "train"), shape.picture.stem
        for number in range(SAMPLES_A_SHAPE):
            (first, answer), *others = about_shape(shape, chance)
            turns = [(first + SHORT_ANSWER, answer), *others]
            samples.append(sample(f"shape_question_{name}_{number}", turns, image))
        caption = [("What is in this picture?", f"A {shape.color} {shape.shape}.")]
        entry = sample(f"shape_caption_{name}", caption, image)
        captions.append({**entry, "similarity": BEST_LEVEL})
    chance.shuffle(samples)
    write(samples, HERE / "questions.json")
    write(captions[:SHAPE_CAPTIONS], HERE / "shape_captions.json")


if __name__ == "__main__":
    main()
