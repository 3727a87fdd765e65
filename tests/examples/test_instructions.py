"""The bundled instruction samples are valid LLaVA files, and what is held out stays held out."""

import csv
import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "instructions"
FILES = {
    "train": "instructions.json",
    "validation": "instructions_validation.json",
    "questions": "questions.json",
    "captions": "shape_captions.json",
}
SPLITS = ("train", "validation")
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


def samples_of(split: str) -> list[dict]:
    return json.loads((FOLDER / FILES[split]).read_text(encoding="utf-8"))


def images_of(entry: dict) -> list[str]:
    images = entry.get("image", [])
    return images if isinstance(images, list) else [images]


def picture_hashes(split: str) -> set[str]:
    pictures = {EXAMPLES / name for entry in samples_of(split) for name in images_of(entry)}
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path in pictures}


@pytest.mark.parametrize("split", FILES)
def test_turns_alternate_and_the_first_marks_every_picture(split: str) -> None:
    for entry in samples_of(split):
        turns = entry["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert all(turn["value"].strip() for turn in turns)
        marks = [turn["value"].count("<image>") for turn in turns]
        assert marks == [len(images_of(entry))] + [0] * (len(turns) - 1)


@pytest.mark.parametrize("split", FILES)
def test_every_picture_is_there_and_decodes(split: str) -> None:
    for name in {name for entry in samples_of(split) for name in images_of(entry)}:
        with Image.open(EXAMPLES / name) as image:
            image.load()


def test_no_shape_is_bundled_without_a_question() -> None:
    asked = {name for split in FILES for entry in samples_of(split) for name in images_of(entry)}
    shapes = FOLDER.glob("shapes/*/*.png")
    assert {path.relative_to(EXAMPLES).as_posix() for path in shapes} <= asked


@pytest.mark.parametrize("split", ["train", "questions", "captions"])
def test_training_and_validation_share_no_picture(split: str) -> None:
    assert not picture_hashes(split) & picture_hashes("validation")


def test_no_id_stands_twice() -> None:
    ids = [entry["id"] for split in FILES for entry in samples_of(split)]
    assert len(set(ids)) == len(ids)


def test_the_stamps_follow_the_split_of_the_corpus() -> None:
    with (EXAMPLES / "corpus" / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab"))
    for split in SPLITS:
        used = {name for entry in samples_of(split) for name in images_of(entry)}
        stamps = {name.removeprefix("corpus/") for name in used if name.startswith("corpus/")}
        assert stamps == {row["file"] for row in rows if row["split"] == split}


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_is_there_and_yes_is_as_frequent_as_no(split: str) -> None:
    entries = samples_of(split)
    kinds = Counter(entry["id"].partition("_")[0] for entry in entries)
    assert {"what", "is", "shape", "text", "two"} <= set(kinds)
    asked = [entry["conversations"] for entry in entries if entry["id"].startswith("is_this")]
    answers = Counter(yes_or_no(turns[1]["value"]) for turns in asked)
    assert abs(answers["yes"] - answers["no"]) <= 1
    assert answers.total() == len(asked)


def yes_or_no(answer: str) -> str:
    """Returns the verdict, which may follow on what is seen."""
    verdict = answer.rpartition(", ")[2].lower()
    assert verdict in ("yes", "no")
    return verdict


def turns_of(entry: dict) -> list[tuple[str, str]]:
    words = [turn["value"] for turn in entry["conversations"]]
    return list(zip(words[::2], words[1::2], strict=True))


def test_each_thing_is_asked_once_where_it_is_and_once_where_it_is_not() -> None:
    asked = [entry for entry in samples_of("questions") if entry["id"].startswith("is_this")]
    of_words: Counter[tuple[str, str]] = Counter()
    of_picture: Counter[tuple[str, str]] = Counter()
    for entry in asked:
        ((question, answer),) = turns_of(entry)
        of_words[question, yes_or_no(answer)] += 1
        of_picture[entry["image"], yes_or_no(answer)] += 1
    for counts in (of_words, of_picture):
        names = {name for name, _ in counts}
        assert all(counts[name, "yes"] == counts[name, "no"] == 1 for name in names)


def test_the_words_alone_do_not_tell_what_is_asked_about_a_shape() -> None:
    answers: dict[str, Counter[str]] = {name: Counter() for name in (*SHAPES, *COLORS)}
    for entry in samples_of("questions"):
        told = set()
        for question, answer in turns_of(entry) if entry["id"].startswith("shape") else ():
            seen = answer.partition(", ")[0].lower()
            assert seen in answers
            assert (seen in SHAPES) not in told
            told.add(seen in SHAPES)
            for name in [name for name in answers if name in question]:
                answers[name][yes_or_no(answer)] += 1
                assert (name == seen) == (yes_or_no(answer) == "yes")
    shares = {name: counts["yes"] / counts.total() for name, counts in answers.items()}
    assert all(0.35 < share < 0.65 for share in shares.values()), shares
    assert min(counts.total() for counts in answers.values()) > 50


@pytest.mark.parametrize("name", ["make_instructions", "make_questions"])
def test_asking_a_script_for_help_rewrites_nothing(name: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(FOLDER.rglob("*"))}
    script = [sys.executable, "-B", str(FOLDER / f"{name}.py"), "--help"]
    said = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    assert "Rebuilds the" in said
    assert {path: path.stat().st_mtime_ns for path in sorted(FOLDER.rglob("*"))} == before
