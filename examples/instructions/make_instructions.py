"""Rebuilds the bundled instruction samples, in LLaVA's format.

Questions about the stamps of `examples/corpus` are made from their captions and topics; those
about coloured shapes are easy-VQA's own. Both files have some samples without a picture. The
image folder of both files is `examples/`.

    pip install easy-vqa
    python examples/instructions/make_instructions.py
"""

import argparse
import csv
import hashlib
import json
import random
import re
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).parent
CORPUS = HERE.parent / "corpus"
SHAPES = {"train": 600, "validation": 100}
EASY_VQA_SPLIT = {"train": "train", "validation": "test"}
QUESTIONS_PER_SHAPE = 4
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


def which_group(topic: str, chance: random.Random) -> Turn:
    """Returns a question for the stamp's topic among four."""
    wrong = chance.sample([name for key, name in TOPICS.items() if key != topic], 3)
    offered = [TOPICS[topic], *wrong]
    chance.shuffle(offered)
    listed = ", ".join(offered[:-1]) + " or " + offered[-1]
    return f"Which group does this belong to: {listed}?{SHORT_ANSWER}", TOPICS[topic].capitalize()


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


def about_shapes(split: str, seen: set[bytes], chance: random.Random) -> list[Sample]:
    """Returns easy-VQA's questions on a few of its pictures, which are copied beside the file.

    Args:
        split: Which of its two splits.
        seen: Hashes of pictures taken so far; those are not taken again, here only added.
        chance: Source of the choice.
    """
    source, target = easy_vqa_folder(split), HERE / "shapes" / split
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    asked: dict[int, list[Turn]] = {}
    for question, answer, number in json.loads((source / "questions.json").read_text()):
        asked.setdefault(number, []).append((question.capitalize(), answer.capitalize()))
    samples: list[Sample] = []
    for number in chance.sample(sorted(asked), len(asked)):
        if len(samples) == SHAPES[split]:
            break
        picture = source / "images" / f"{number}.png"
        digest = hashlib.sha256(picture.read_bytes()).digest()
        if digest in seen:
            continue
        seen.add(digest)
        shutil.copyfile(picture, target / picture.name)
        chosen = chance.sample(asked[number], min(QUESTIONS_PER_SHAPE, len(asked[number])))
        turns = [(question + SHORT_ANSWER, answer) for question, answer in chosen]
        image = f"instructions/shapes/{split}/{picture.name}"
        samples.append(sample(f"shape_{split}_{number}", turns, image))
    return samples


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
    seen: set[bytes] = set()
    for split, name in (("train", "instructions"), ("validation", "instructions_validation")):
        chance = random.Random(f"{name} 1")
        stamps = [row for row in rows if row["split"] == split]
        samples = what_is_it(stamps, chance) + yes_or_no(stamps, chance)
        samples += about_shapes(split, seen, chance)
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
