"""SEED-Bench: multiple choice about pictures and videos; the published number is of pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from training.evaluation.files import Folder, Row, read_json, read_jsonl, read_parquet, with_fields
from training.evaluation.protocol import (
    OPTION_LETTER,
    Benchmark,
    Purpose,
    Submission,
    mean_by,
    mean_score,
)
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Tally, mean_tally

ANNOTATIONS = "SEED-Bench.json"
ASKED = "llava-seed-bench.jsonl"
LAST_IMAGE_TYPE = 9
FIELDS = ("question_id", "question_type_id", "answer")


class SEEDBench(Benchmark):
    """The text equals the letter, or is wrong."""

    name = "seed"
    title = "SEED-Bench"
    aliases = ("seedbench", "seed_bench", "seed_image")
    folders = ("seed_bench", "SEED-Bench", "seed")
    split = "image questions"
    has_splits = True
    metric = "accuracy x 100 over image questions"
    script = "convert_seed_for_submission.py of LLaVA, image accuracy"
    layout = (
        f"{ANNOTATIONS} with SEED-Bench-image/ (and SEED-Bench-video-image/), for LLaVA's layout "
        f"also {ASKED}; or Parquet of lmms-lab/SEED-Bench",
    )
    source = "github.com/AILab-CVC/SEED-Bench, LLaVA's eval.zip, lmms-lab/SEED-Bench"
    questions = 14233
    paper: ClassVar = {"7B": 66.5, "13B": 67.8}

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions; to ask, those of videos only with LLaVA's file and frames."""
        path = folder.find(ANNOTATIONS)
        if path is None:
            paths = folder.parquet("test")
            if paths:
                return _of_parquet(paths)
            raise folder.missing(ANNOTATIONS)
        annotations = with_fields(read_json(path), ("questions", "question_type"), str(path))
        names = {number: name for name, number in annotations["question_type"].items()}
        asked = folder.find(ASKED)
        texts = {} if asked is None else _llava_rows(asked)
        questions = []
        for row in annotations["questions"]:
            with_fields(row, FIELDS, str(path))
            is_video = _data_type(row) == "video"
            known = texts.get(str(row["question_id"]))
            if purpose == "ask" and is_video and (split != "all" or known is None):
                continue
            questions.append(_question(folder, row, names, known))
        return questions

    def relevant(self, answers: Sequence[Answer]) -> list[Answer]:
        """Returns all, or those of image questions where no video's was answered."""
        has_videos = any(answer.text is not None for answer in _of_type(answers, "video"))
        return list(answers) if has_videos else _of_type(answers, "image")

    def published(self, answers: Sequence[Answer]) -> int:
        """Returns how many image questions there are."""
        return len(_of_type(answers, "image"))

    def grade(self, answer: Answer) -> None:
        """Compares for equality; a missing answer is wrong."""
        answer.parsed = answer.text
        answer.score = float(answer.text == answer.question.facts["answer"])

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the accuracy over all, pictures, videos, and by the file's types."""
        pictures, videos = _of_type(answers, "image"), _of_type(answers, "video")
        parts: dict[str, Any] = {
            "accuracy": mean_score(answers),
            "image_accuracy": mean_score(pictures),
        }
        if videos:
            parts["video_accuracy"] = mean_score(videos)
        parts["per_type"] = mean_by(answers, "type")
        parts["image_questions"], parts["video_questions"] = len(pictures), len(videos)
        return parts

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns the sums of the accuracy over image questions."""
        pictures = _of_type(answers, "image")
        return mean_tally([a.unit for a in pictures], [float(a.score or 0) for a in pictures])

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns the leaderboard's JSONL, of image questions alone where no others are there."""
        lines = [
            json.dumps(
                {"question_id": str(answer.question.question_id), "prediction": answer.text or ""}
            )
            for answer in answers
        ]
        return Submission("seed_results.jsonl", "".join(f"{line}\n" for line in lines).encode())


def _of_type(answers: Sequence[Answer], name: str) -> list[Answer]:
    return [answer for answer in answers if answer.question.facts["data_type"] == name]


def _data_type(row: Row) -> str:
    known = row.get("data_type")
    return known or ("image" if int(row["question_type_id"]) <= LAST_IMAGE_TYPE else "video")


def _llava_rows(path: Path) -> dict[str, Row]:
    rows = read_jsonl(path, ("question_id", "image", "text"))
    return {str(row["question_id"]): row for row in rows}


def _question(folder: Folder, row: Row, names: dict[int, str], asked: Row | None) -> Question:
    number = row["question_id"]
    data_type = _data_type(row)
    image = f"SEED-Bench-image/{row.get('data_id')}" if asked is None else asked["image"]
    root = (folder.places or [folder.root])[0]
    where = next((p / image for p in folder.places if (p / image).is_file()), root / image)
    facts = {
        "answer": row["answer"],
        "data_type": data_type,
        "type": names.get(row["question_type_id"], row["question_type_id"]),
    }
    return Question(
        question_id=int(number) if str(number).isdigit() else number,
        prompt=prompt_of(row) if asked is None else asked["text"],
        picture=Picture(name=image, path=str(where)),
        facts=facts,
    )


def prompt_of(row: Row) -> str:
    """Returns question, options and suffix."""
    lines = [row.get("question") or ""]
    lines += [f"{letter.upper()}. {row.get(f'choice_{letter}')}" for letter in "abcd"]
    return "\n".join(lines) + OPTION_LETTER


def _of_parquet(paths: list[Path]) -> list[Question]:
    choices = tuple(f"choice_{letter}" for letter in "abcd")
    columns = ("question_id", "image", "question", *choices, "answer", "question_type_id")
    questions = []
    for path, number, row in read_parquet(paths, columns, ("data_type", "data_id")):
        if _data_type(row) != "image":
            continue
        identifier = row["question_id"]
        facts = {"answer": row["answer"], "data_type": "image", "type": row["question_type_id"]}
        questions.append(
            Question(
                question_id=int(identifier) if str(identifier).isdigit() else identifier,
                prompt=prompt_of(row),
                picture=Picture(
                    name=str(row.get("data_id") or identifier), path=str(path), row=number
                ),
                facts=facts,
            )
        )
    return questions


BENCHMARK = SEEDBench()
