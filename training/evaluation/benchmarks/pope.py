"""POPE: whether an object is in a picture; most wrong answers see what is not there."""

from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, check_whole, read_jsonl, read_parquet
from training.evaluation.metrics.yes_no import Confusion, pope_answer
from training.evaluation.protocol import SHORT_ANSWER, Benchmark, Purpose
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Sums, Tally, divided, tally_of

CATEGORIES = ("adversarial", "popular", "random")
FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
"""What LLaVA's question file adds to the ids of a category."""
ORDER = ("adversarial", "random", "popular")
ASKED = "llava_pope_test.jsonl"
PUBLISHED = {"adversarial": 3000, "popular": 3000, "random": 2910}
COMMIT = "e3e3926"
OUTCOMES = {("yes", "yes"): 0, ("yes", "no"): 1, ("no", "yes"): 2}
"""(answer, label) to true positive, false positive, false negative."""


class POPE(Benchmark):
    """The mean F1 of the three categories, labels paired by id and checked by question."""

    name = "pope"
    title = "POPE"
    folders = ("pope", "POPE")
    split = "COCO val2014: adversarial, popular, random"
    metric = "mean F1 x 100 of the three categories"
    script = "eval_pope.py of LLaVA and AlignGPT"
    layout = (
        "coco/coco_pope_adversarial.json, coco_pope_popular.json and coco_pope_random.json of "
        f"RUCAIBox/POPE@{COMMIT} with val2014/, for LLaVA's layout also {ASKED}; or Parquet of "
        "lmms-lab/POPE",
    )
    source = "github.com/RUCAIBox/POPE, LLaVA's eval.zip, lmms-lab/POPE"
    questions = 8910
    paper: ClassVar = {"7B": 86.0, "13B": 86.2}

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions of all categories that are there."""
        labels = {category: _labels(folder, category) for category in ORDER}
        asked = folder.find(ASKED)
        if asked is not None:
            return _of_llava(folder, asked, labels, purpose)
        if any(labels.values()):
            return [
                _question(number, category, row, _file(folder, row["image"]))
                for category in ORDER
                for number, row in _numbered(category, labels[category])
            ]
        paths = folder.parquet("test") or [
            path for category in CATEGORIES for path in folder.parquet(category, "Full")
        ]
        if not paths:
            raise folder.missing(f"coco_pope_adversarial.json or {ASKED}")
        return _of_parquet(paths)

    def grade(self, answer: Answer) -> None:
        """Reads yes or no; a missing answer is neither and not counted."""
        if answer.text is None:
            return
        answer.parsed = pope_answer(answer.text)
        label = answer.question.facts["label"]
        if label is not None:
            answer.score = float(answer.parsed == label)

    def check(self, answers: Sequence[Answer]) -> None:
        """Raises ConfigError if questions were answered that these labels are not of."""
        for answer in answers:
            asked, told = answer.question.prompt, answer.prompt
            if told is not None and told != asked and told != asked.removesuffix(SHORT_ANSWER):
                category = answer.question.facts["category"]
                raise ConfigError(
                    f"POPE: answer {answer.question.question_id} is to {told!r}, but the label "
                    f"under that id is of {asked!r}: coco_pope_{category}.json is another version "
                    f"than was asked. Use the files of RUCAIBox/POPE@{COMMIT} (random has "
                    f"{PUBLISHED['random']:,} rows there, 3,000 today), or put {ASKED}, which has "
                    "the ids, beside them"
                )

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the counts and ratios of each category, and their means."""
        parts: dict[str, Any] = {}
        for category in CATEGORIES:
            pairs = _pairs(answers, category)
            if pairs:
                parts[category] = _of_category(Confusion.of(pairs))
        names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        means = {
            name: sum(part[name] for part in parts.values()) / len(parts) for name in names if parts
        }
        return {**means, **parts}

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns true positives, false positives and false negatives of each category."""
        scored = [answer for answer in answers if answer.score is not None]
        present = [category for category in CATEGORIES if _pairs(scored, category)]

        def headline(sums: Sums) -> Sums:
            by_category = sums.reshape(*sums.shape[:-1], len(present), 3)
            right = 2 * by_category[..., 0]
            wrong = by_category[..., 1] + by_category[..., 2]
            f1: Sums = 100 * divided(right, right + wrong)
            mean: Sums = f1.mean(axis=-1)
            return mean

        rows = []
        for answer in scored:
            row = [0.0] * 3 * len(present)
            facts = answer.question.facts
            outcome = OUTCOMES.get((answer.parsed, facts["label"]))
            if outcome is not None:
                row[3 * present.index(facts["category"]) + outcome] = 1.0
            rows.append(row)
        return tally_of([answer.unit for answer in scored], rows, headline)


def _of_category(counts: Confusion) -> dict[str, float]:
    return {
        "samples": counts.total,
        "TP": counts.true_positive,
        "FP": counts.false_positive,
        "TN": counts.true_negative,
        "FN": counts.false_negative,
        "accuracy": counts.accuracy,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "yes_ratio": counts.yes_ratio,
    }


def _pairs(answers: Sequence[Answer], category: str) -> list[tuple[str, str]]:
    return [
        (answer.parsed, answer.question.facts["label"])
        for answer in answers
        if answer.score is not None and answer.question.facts["category"] == category
    ]


def _labels(folder: Folder, category: str) -> list[Row]:
    name = f"coco_pope_{category}.json"
    path = folder.find(f"coco/{name}", name, f"output/coco/{name}", f"*/{name}")
    return [] if path is None else read_jsonl(path, ("question_id", "image", "text", "label"))


def _numbered(category: str, rows: list[Row]) -> list[tuple[int, Row]]:
    """Returns the rows with the ids that LLaVA's question file gives them."""
    numbers = [int(row["question_id"]) for row in rows]
    if len(set(numbers)) != len(numbers):
        numbers = list(range(1, len(rows) + 1))
    first = 0 if max(numbers, default=0) > FIRST_ID["random"] else FIRST_ID[category]
    return [(first + number, row) for number, row in zip(numbers, rows, strict=True)]


def _of_llava(
    folder: Folder, path: Any, labels: dict[str, list[Row]], purpose: Purpose
) -> list[Question]:
    """Returns the questions of LLaVA's file, each with the label of the same picture and words.

    Raises:
        ConfigError: if a question has no label, or two that differ.
    """
    rows = read_jsonl(path, ("question_id", "image", "text", "category"))
    if purpose == "score" and not any(labels.values()):
        raise folder.missing("coco/coco_pope_adversarial.json, whose labels scoring needs")
    questions = []
    names = dict.fromkeys(row["category"] for row in rows)
    absent = [name for name in labels if labels[name] and name not in names]
    check_whole(path, absent, "coco/, by category,")
    for category in names:
        of_category = [row for row in rows if row["category"] == category]
        given = _label_of_each(path, category, of_category, labels.get(category, []))
        questions += [
            _question(
                row["question_id"],
                category,
                {"text": _bare(row), "label": label},
                _file(folder, row["image"]),
            )
            for row, label in zip(of_category, given, strict=True)
        ]
    return questions


def _label_of_each(path: Any, category: str, rows: list[Row], labels: list[Row]) -> list[Any]:
    """Returns the label of each question: line by line where the two files agree, else by words.

    Raises:
        ConfigError: if a question has no label, or two that differ.
    """
    if not labels:
        return [None] * len(rows)
    asked = [(row["image"], _bare(row)) for row in rows]
    known = [(row["image"], _bare(row)) for row in labels]
    if asked == known:
        return [row["label"] for row in labels]
    if asked == known[: len(asked)]:
        check_whole(path, known[len(asked) :], f"coco_pope_{category}.json")
    by_words: dict[tuple[str, str], set[str]] = {}
    for key, row in zip(known, labels, strict=True):
        by_words.setdefault(key, set()).add(row["label"])
    wrong = next((key for key in asked if len(by_words.get(key, ())) != 1), None)
    if wrong is not None:
        raise ConfigError(
            f"{path} asks {wrong[1]!r} about {wrong[0]}, for which coco_pope_{category}.json has "
            f"{'two labels' if wrong in by_words else 'no label'}: it is another version. Use the "
            f"files of RUCAIBox/POPE@{COMMIT}, with {PUBLISHED.get(category, 0):,} rows"
        )
    return [next(iter(by_words[key])) for key in asked]


def _bare(row: Row) -> str:
    return str(row["text"]).removesuffix(SHORT_ANSWER).strip()


def _of_parquet(paths: list[Any]) -> list[Question]:
    columns, optional = ("question_id", "image", "question", "answer", "category"), (
        "image_source", "id",
    )  # fmt: skip
    rows = list(read_parquet(paths, columns, optional))
    numbers = [str(row["question_id"]) for _, _, row in rows]
    is_own = len(set(numbers)) == len(numbers)
    return [
        _question(
            row["question_id"] if is_own else FIRST_ID[row["category"]] + int(row["question_id"]),
            row["category"],
            {"text": row["question"], "label": row["answer"].strip().lower()},
            Picture(
                name=str(row.get("image_source") or f"{path.name}:{number}"),
                path=str(path),
                row=number,
            ),
        )
        for path, number, row in rows
    ]


def _question(number: int | str, category: str, row: Row, picture: Picture) -> Question:
    return Question(
        question_id=number,
        prompt=row["text"] + SHORT_ANSWER,
        picture=picture,
        facts={"category": category, "label": row["label"]},
    )


def _file(folder: Folder, image: str) -> Picture:
    return Picture(name=image, path=str(folder.folder("val2014") / image))


BENCHMARK = POPE()
