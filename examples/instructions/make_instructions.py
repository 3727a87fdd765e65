"""Rebuilds the bundled instruction samples, in LLaVA's format.

Questions about the stamps of `examples/corpus` are made from their captions and topics; those about
coloured shapes from the answers of easy-VQA. Both files have some samples without a picture. The
image folder of both files is `examples/`.

Held out are also questions in pairs, one question on two pictures with different answers, so that
the words alone do not tell the answer; those for yes or no once more in POPE's format.

    pip install easy-vqa
    python examples/instructions/make_instructions.py
"""

import argparse
import csv
import hashlib
import itertools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
SHAPES = {"train": 600, "validation": 160}
WORD_PAIRS = 20
"""Of pictures with different answers, for colour and for shape."""
YES_NO_PAIRS = 15
"""The same, for questions answered by what is seen and yes or no."""
GROUP_PAIRS = 20
STAMP_YES_NO_PAIRS = 20
EASY_VQA_SPLIT = {"train": "train", "validation": "test"}
COMPARISONS = {"train": 80, "validation": 12}
OF_TWO_PICTURES = {"train": 80, "validation": 12}
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."

OPEN_QUESTIONS = (
    "What is this?",
    "What is in this picture?",
    "What does the picture show?",
    "Describe the picture in a few words.",
)
TOPICS = {
    "animals": "animals",
    "clothes": "clothes",
    "food": "food",
    "hobbies": "hobbies",
    "household": "household",
    "plants": "plants",
    "seasonal": "holidays",
    "space": "space",
    "sports": "sports",
    "symbols": "symbols",
    "town": "town",
    "vehicles": "vehicles",
}
"""Topic folder → its name in a question; the smaller and vaguer topics are not asked for."""

THING = re.compile(r"An? [^.!?;(—]{2,40}\.")
"""Captions that name one thing in a few words, so that "Is this a …?" can be asked."""

SHAPE_NAMES = ("circle", "rectangle", "triangle")
COLOR_NAMES = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPE_QUESTIONS = (
    "What shape is in the image?",
    "What shape does the image contain?",
    "What shape is present?",
)
COLOR_QUESTIONS = ("What color is the shape?", "What is the color of the shape?")
IS_THERE = ("Is there a {thing}?", "Does the image contain a {thing}?", "Is a {thing} present?")
"""easy-VQA's own words, without those that negate."""

Turn = tuple[str, str]


class Sample(TypedDict, total=False):
    """One entry of a LLaVA file; text-only entries have no image, some have a list of two."""

    id: str
    image: str | list[str]
    conversations: list[dict[str, str]]


def sample(name: str, turns: Sequence[Turn], image: str | None = None) -> Sample:
    """Returns an entry, with the mark of the picture in its first question."""
    conversations = []
    for number, (question, answer) in enumerate(turns):
        mark = "<image>\n" if image is not None and number == 0 else ""
        conversations.append({"from": "human", "value": mark + question})
        conversations.append({"from": "gpt", "value": answer})
    if image is None:
        return {"id": name, "conversations": conversations}
    return {"id": name, "image": image, "conversations": conversations}


def thing(caption: str) -> str | None:
    """Returns what the caption names ("a red apple"), None if it is a longer story."""
    if THING.fullmatch(caption) is None:
        return None
    return caption[0].lower() + caption[1:-1]


def not_this(stamp: dict[str, str], others: list[dict[str, str]], chance: random.Random) -> str:
    """Returns what another stamp shows, half of the time one of the same topic."""
    shown = str(thing(stamp["caption"]))
    same_topic = [other for other in others if other["topic"] == stamp["topic"]]
    pool = same_topic if chance.random() < 0.5 and len(same_topic) > 1 else others
    named = [str(thing(other["caption"])) for other in pool]
    return chance.choice([name for name in named if name not in shown and shown not in name])


def yes_or_no(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns "Is this a …?" for each stamp that has a name; every other answer is "No"."""
    things = [stamp for stamp in stamps if thing(stamp["caption"]) is not None]
    samples = []
    for number, stamp in enumerate(chance.sample(things, len(things))):
        is_true = number % 2 == 0
        asked = thing(stamp["caption"]) if is_true else not_this(stamp, things, chance)
        turn = (f"Is this {asked}?{SHORT_ANSWER}", "Yes" if is_true else "No")
        samples.append(about(stamp, "is_this", [turn]))
    return samples


def seen_first(seen: str, is_true: bool) -> str:
    """Returns an answer that says what is seen, and then whether it is what was asked for."""
    return f"{seen.capitalize()}, {'yes' if is_true else 'no'}"


def which_group(topic: str, chance: random.Random) -> Turn:
    """Returns a question for the stamp's topic among four."""
    return group_question([topic], chance), TOPICS[topic].capitalize()


def group_question(topics: Sequence[str], chance: random.Random) -> str:
    """Returns the question for a group among four, these topics in it."""
    others = [key for key in TOPICS if key not in topics]
    offered = [TOPICS[key] for key in (*topics, *chance.sample(others, 4 - len(topics)))]
    chance.shuffle(offered)
    listed = ", ".join(offered[:-1]) + " or " + offered[-1]
    return f"Which group does this belong to: {listed}?{SHORT_ANSWER}"


def about(stamp: dict[str, str], kind: str, turns: Sequence[Turn]) -> Sample:
    """Returns a conversation about a stamp."""
    name = stamp["file"].removeprefix("images/").removesuffix(".png").replace("/", "_")
    return sample(f"{kind}_{name}", turns, f"corpus/{stamp['file']}")


def what_is_it(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns a conversation for each stamp: its group, where it has one, then what it shows."""
    samples = []
    for stamp in stamps:
        turns = [which_group(stamp["topic"], chance)] if stamp["topic"] in TOPICS else []
        turns.append((chance.choice(OPEN_QUESTIONS), stamp["caption"]))
        samples.append(about(stamp, "what", turns))
    return samples


def easy_vqa_folder(split: str) -> Path:
    """Returns a split of the installed easy-vqa package, found without importing it."""
    try:
        package = distribution("easy-vqa")
    except PackageNotFoundError:
        raise SystemExit("easy-vqa is missing: pip install easy-vqa") from None
    return Path(str(package.locate_file("easy_vqa"))) / "data" / EASY_VQA_SPLIT[split]


@dataclass(frozen=True, slots=True)
class Shape:
    """A picture of easy-VQA, and what can be said about it for certain."""

    picture: Path
    shape: str
    color: str


def known_shapes(split: str, seen: set[bytes], chance: random.Random) -> Iterator[Shape]:
    """Yields easy-VQA's pictures whose shape and colour its answers name, in a random order.

    Args:
        split: which of its two splits.
        seen: hashes of pictures taken so far; those are not taken again, here only added.
        chance: source of the order.
    """
    source = easy_vqa_folder(split)
    said: dict[int, dict[str, str]] = {}
    for _, answer, number in json.loads((source / "questions.json").read_text()):
        if answer not in ("yes", "no"):
            said.setdefault(number, {})["shape" if answer in SHAPE_NAMES else "color"] = answer
    for number in chance.sample(sorted(said), len(said)):
        picture = source / "images" / f"{number}.png"
        digest = hashlib.sha256(picture.read_bytes()).digest()
        if len(said[number]) == 2 and digest not in seen:
            seen.add(digest)
            yield Shape(picture, **said[number])


def bundled(shape: Shape, split: str) -> str:
    """Returns where the picture is from the image folder, once it is copied there."""
    target = HERE / "shapes" / split
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(shape.picture, target / shape.picture.name)
    return f"instructions/shapes/{split}/{shape.picture.name}"


def about_shapes(shapes: Iterator[Shape], chance: random.Random) -> list[Sample]:
    """Returns a conversation about each of some shapes: two questions for yes or no, two words."""
    samples: list[Sample] = []
    for number, shape in enumerate(itertools.islice(shapes, SHAPES["train"])):
        turns = [is_there(shape.shape, SHAPE_NAMES, number % 2 == 0, chance)]
        turns.append(is_there(shape.color, COLOR_NAMES, number % 4 < 2, chance))
        words = [(chance.choice(COLOR_QUESTIONS), shape.color.capitalize())]
        words.append((chance.choice(SHAPE_QUESTIONS), shape.shape.capitalize()))
        turns = [*chance.sample(turns, 2), *chance.sample(words, 2)]
        turns[0] = (turns[0][0] + SHORT_ANSWER, turns[0][1])
        image = bundled(shape, "train")
        samples.append(sample(f"shape_train_{shape.picture.stem}", turns, image))
    return samples


def is_there(own: str, names: tuple[str, ...], is_true: bool, chance: random.Random) -> Turn:
    """Returns whether a shape or colour is in a picture."""
    asked = own if is_true else chance.choice([name for name in names if name != own])
    thing = asked if names is SHAPE_NAMES else f"{asked} shape"
    return chance.choice(IS_THERE).format(thing=thing), "Yes" if is_true else "No"


def pairs_about_shapes(shapes: Iterator[Shape], chance: random.Random) -> list[Sample]:
    """Returns questions on two pictures each, which have different answers."""
    samples: list[Sample] = []
    waiting = list(itertools.islice(shapes, SHAPES["validation"]))

    def add(kind: str, question: str, answered: Sequence[tuple[Shape, str]]) -> None:
        for shape, answer in answered:
            turn = (question + SHORT_ANSWER, answer)
            image = bundled(shape, "validation")
            samples.append(sample(f"shape_{kind}_{shape.picture.stem}", [turn], image))

    def two(of: Callable[[Shape], str]) -> tuple[Shape, Shape]:
        one = waiting.pop()
        other = next(shape for shape in reversed(waiting) if of(shape) != of(one))
        waiting.remove(other)
        return one, other

    for of, questions, names, kind in (
        (lambda shape: shape.color, COLOR_QUESTIONS, COLOR_NAMES, "color"),
        (lambda shape: shape.shape, SHAPE_QUESTIONS, SHAPE_NAMES, "shape"),
    ):
        for _ in range(WORD_PAIRS):
            pair = two(of)
            said = [(shape, of(shape).capitalize()) for shape in pair]
            add(f"{kind}_word", chance.choice(questions), said)
        for _ in range(YES_NO_PAIRS):
            pair = two(of)
            question, _ = is_there(of(pair[0]), names, True, chance)
            said = [(shape, seen_first(of(shape), shape is pair[0])) for shape in pair]
            add(f"{kind}_yes_no", question, said)
    return samples


def pairs_about_stamps(stamps: list[dict[str, str]], chance: random.Random) -> list[Sample]:
    """Returns questions for the group of two stamps of different groups, and for yes or no."""
    samples: list[Sample] = []
    grouped = [stamp for stamp in stamps if stamp["topic"] in TOPICS]
    chance.shuffle(grouped)
    for number in range(GROUP_PAIRS):
        one = grouped.pop()
        other = next(s for s in reversed(grouped) if s["topic"] != one["topic"])
        grouped.remove(other)
        question = group_question([one["topic"], other["topic"]], chance)
        for stamp in (one, other):
            turn = (question, TOPICS[stamp["topic"]].capitalize())
            samples.append(about(stamp, f"group_{number}", [turn]))
    named = [stamp for stamp in stamps if thing(stamp["caption"]) is not None]
    chance.shuffle(named)
    for number in range(STAMP_YES_NO_PAIRS):
        one, other = named[2 * number % len(named)], named[(2 * number + 1) % len(named)]
        question = f"Is this {thing(one['caption'])}?{SHORT_ANSWER}"
        for stamp in (one, other):
            answer = seen_first(TOPICS[stamp["topic"]], stamp is one)
            samples.append(about(stamp, f"is_this_{number}", [(question, answer)]))
    return samples


def write_pope(samples: list[Sample], path: Path) -> None:
    """Writes the questions for yes or no in POPE's format, a line each.

    Source: the files of AoiDragon/POPE: question_id, image, text, label.
    """
    lines: list[str] = []
    for entry in samples:
        question, answer = (turn["value"] for turn in entry["conversations"])
        label = answer.rpartition(", ")[2]
        if label in ("yes", "no"):
            text = question.removeprefix("<image>\n").removesuffix(SHORT_ANSWER)
            line = {"question_id": len(lines) + 1, "image": entry["image"], "text": text}
            lines.append(json.dumps(line | {"label": label}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def without_a_picture(
    stamps: list[dict[str, str]], split: str, chance: random.Random
) -> list[Sample]:
    """Returns questions that need no picture: which of two things belongs to a group, and facts."""
    named = [s for s in stamps if s["topic"] in TOPICS and thing(s["caption"]) is not None]
    samples = []
    for number in range(COMPARISONS[split]):
        right = chance.choice(named)
        wrong = chance.choice([other for other in named if other["topic"] != right["topic"]])
        offered = [str(thing(right["caption"])), str(thing(wrong["caption"]))]
        chance.shuffle(offered)
        question = (
            f"Which of the two has to do with {TOPICS[right['topic']]}: {' or '.join(offered)}?"
        )
        samples.append(sample(f"text_{split}_{number}", [(question, right["caption"])]))
    if split == "train":
        facts = json.loads((HERE / "facts.json").read_text(encoding="utf-8"))
        for number, (question, answer) in enumerate(facts):
            samples.append(sample(f"fact_{number}", [(question, answer)]))
    return samples


def which_of_two(stamps: list[dict[str, str]], split: str, chance: random.Random) -> list[Sample]:
    """Returns questions for the one of two pictures that shows something."""
    named = [stamp for stamp in stamps if thing(stamp["caption"]) is not None]
    samples: list[Sample] = []
    for number in range(OF_TWO_PICTURES[split]):
        two = chance.sample(named, 2)
        right = number % 2
        question = f"Which picture shows {thing(two[right]['caption'])}, the first or the second?"
        turn = (f"<image>\n<image>\n{question}", ("The first.", "The second.")[right])
        entry = sample(f"two_{split}_{number}", [turn])
        samples.append({**entry, "image": [f"corpus/{stamp['file']}" for stamp in two]})
    return samples


def main() -> None:
    """Rebuilds both files beside this script."""
    argparse.ArgumentParser(
        description="Rebuilds the bundled instruction samples and their shapes, beside this script."
    ).parse_args()
    with (CORPUS / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    shutil.rmtree(HERE / "shapes", ignore_errors=True)
    seen: set[bytes] = set()
    for split, name in (("train", "instructions"), ("validation", "instructions_validation")):
        chance = random.Random(f"{name} 2")
        stamps = [row for row in rows if row["split"] == split]
        shapes = known_shapes(split, seen, chance)
        samples = what_is_it(stamps, chance)
        if split == "train":
            samples += yes_or_no(stamps, chance) + about_shapes(shapes, chance)
        else:
            paired = pairs_about_shapes(shapes, chance) + pairs_about_stamps(stamps, chance)
            write_pope(paired, HERE / "yes_no_validation.jsonl")
            samples += paired
        samples += without_a_picture(stamps, split, chance)
        chance.shuffle(samples)
        samples += which_of_two(stamps, split, chance)
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{len(samples)} samples in {path}")
    licence = distribution("easy-vqa").read_text("LICENSE")
    assert licence is not None
    (HERE / "shapes" / "LICENSE").write_text(licence, encoding="utf-8")


if __name__ == "__main__":
    main()
