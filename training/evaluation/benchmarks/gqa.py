"""GQA: compositional questions about real pictures, one right answer each."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import (
    Folder,
    Row,
    check_whole,
    read_json,
    read_jsonl,
    read_parquet,
    with_fields,
)
from training.evaluation.protocol import SHORT_ANSWER, Benchmark, Purpose, mean_by, mean_score
from training.evaluation.questions import Answer, Picture, Question

QUESTIONS = "testdev_balanced_questions.json"
PLACES = (QUESTIONS, f"data/{QUESTIONS}", f"data/*/{QUESTIONS}", f"*/{QUESTIONS}")


class GQA(Benchmark):
    """Exact equality over the balanced questions, as the official eval.py has it."""

    name = "gqa"
    title = "GQA"
    folders = ("gqa", "GQA")
    split = "testdev_balanced"
    metric = "accuracy x 100"
    script = "eval.py of GQA, of LLaVA's convert_gqa_for_eval.py's answers"
    layout = (
        "data/testdev_balanced_questions.json and data/images/, for LLaVA's layout also "
        "llava_gqa_testdev_balanced.jsonl; or Parquet of lmms-lab/GQA",
    )
    source = "cs.stanford.edu/people/dorarad/gqa, LLaVA's eval.zip, lmms-lab/GQA"
    questions = 12578
    digits = 2
    paper: ClassVar = {"7B": 62.9, "13B": 63.6}

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions of testdev_balanced."""
        path = folder.find(*PLACES)
        annotations: dict[str, Row] = {} if path is None else read_json(path)
        asked = folder.find("llava_gqa_testdev_balanced.jsonl")
        if asked is None and path is None:
            paths = folder.parquet("testdev", "testdev_balanced_instructions")
            if paths:
                return _of_parquet(folder, paths)
            raise folder.missing(f"{QUESTIONS} or llava_gqa_testdev_balanced.jsonl")
        if purpose == "score" and path is None:
            folder.need(*PLACES)
        if asked is not None:
            return [_of_llava(folder, row, annotations) for row in _llava_rows(asked, annotations)]
        return [_official(folder, number, row) for number, row in annotations.items()]

    def grade(self, answer: Answer) -> None:
        """Compares for equality, lower-cased and without periods at the end."""
        answer.parsed = None if answer.text is None else answer.text.rstrip(".").lower()
        label = answer.question.facts.get("answer")
        if label is not None and answer.question.facts["is_balanced"]:
            answer.score = float(answer.parsed == label)

    def check(self, answers: Sequence[Answer]) -> None:
        """Raises ConfigError where the official script does: a balanced question unanswered."""
        absent = [
            str(answer.question.question_id)
            for answer in answers
            if answer.text is None and answer.question.facts["is_balanced"]
        ]
        if absent:
            raise ConfigError(
                f"GQA: {len(absent)} of {len(answers)} questions have no answer, and the official "
                f"script scores none then ({', '.join(absent[:10])} …): answer them all"
            )

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns accuracy over all, over yes-no and open questions, and by type."""
        binary = [a for a in answers if a.question.facts["structural"] != "query"]
        other = [a for a in answers if a.question.facts["structural"] == "query"]
        return {
            "accuracy": round(mean_score(answers), 2),
            "binary": round(mean_score(binary), 2),
            "open": round(mean_score(other), 2),
            "per_structural_type": _rounded(mean_by(answers, "structural")),
            "per_semantic_type": _rounded(mean_by(answers, "semantic")),
            "distribution": round(distribution(answers), 2),
            "balanced_questions": sum(answer.score is not None for answer in answers),
        }


def distribution(answers: Sequence[Answer]) -> float:
    """Returns how far answers are distributed otherwise than labels: 0 is equal.

    The chi-square of each global group, weighted by its questions, divided by 100.
    Source: eval.py of GQA.
    """
    groups: dict[str, list[tuple[str, Any]]] = {}
    for answer in answers:
        group = answer.question.facts.get("group")
        if group is not None and answer.score is not None:
            pair = (answer.question.facts["answer"], answer.parsed)
            groups.setdefault(group, []).append(pair)
    total = 0.0
    for pairs in groups.values():
        labels = Counter(label for label, _ in pairs)
        said = Counter(word for _, word in pairs)
        square = sum((said[label] - count) ** 2 / count for label, count in labels.items())
        total += square * len(pairs)
    count = sum(len(pairs) for pairs in groups.values())
    return total / count / 100 if count else 0.0


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {label: round(value, 2) for label, value in values.items()}


def _llava_rows(path: Any, annotations: dict[str, Row]) -> list[Row]:
    rows = read_jsonl(path, ("question_id", "image", "text"))
    unknown = [row["question_id"] for row in rows if str(row["question_id"]) not in annotations]
    if annotations and unknown:
        raise ConfigError(
            f"{path} asks {len(unknown)} questions that are not in {QUESTIONS} ({unknown[0]} …): "
            "the two are of different splits, or one is not whole; get both again"
        )
    asked = {str(row["question_id"]) for row in rows}
    wanted = (number for number, row in annotations.items() if row.get("isBalanced", True))
    check_whole(path, [number for number in wanted if number not in asked], QUESTIONS)
    return rows


def _of_llava(folder: Folder, row: Row, annotations: dict[str, Row]) -> Question:
    number, image = row["question_id"], row["image"]
    return _question(number, row["text"], _file(folder, image), annotations.get(str(number), {}))


def _official(folder: Folder, number: str, row: Row) -> Question:
    with_fields(row, ("question", "answer"), f"{QUESTIONS}, {number}")
    picture = _file(folder, f"{row.get('imageId', number)}.jpg")
    return _question(number, row["question"] + SHORT_ANSWER, picture, row)


def _of_parquet(folder: Folder, paths: list[Any]) -> list[Question]:
    places = {
        row["id"]: (path, number)
        for path, number, row in read_parquet(
            folder.parquet("testdev", "testdev_balanced_images"), ("id", "image")
        )
    }
    columns = ("id", "imageId", "question", "answer")
    questions = []
    for _, _, row in read_parquet(paths, columns, ("isBalanced", "types", "groups")):
        path, number = places.get(row["imageId"], ("", 0))
        picture = Picture(name=row["imageId"], path=str(path), row=number)
        questions.append(_question(row["id"], row["question"] + SHORT_ANSWER, picture, row))
    return questions


def _question(number: Any, prompt: str, picture: Picture, row: Row) -> Question:
    types, groups = row.get("types") or {}, row.get("groups") or {}
    return Question(
        question_id=number,
        prompt=prompt,
        picture=picture,
        facts={
            "answer": row.get("answer"),
            "is_balanced": bool(row.get("isBalanced", True)),
            "structural": types.get("structural"),
            "semantic": types.get("semantic"),
            "group": groups.get("global"),
        },
    )


def _file(folder: Folder, image: str) -> Picture:
    return Picture(name=image, path=str(folder.folder("data/images", "images") / image))


BENCHMARK = GQA()
