"""VQAv2: open questions about COCO pictures, ten people's answers each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_json, read_jsonl, read_parquet, with_fields
from training.evaluation.metrics.consensus import vqa_eval_score
from training.evaluation.metrics.normalise import eval_ai
from training.evaluation.protocol import (
    SHORT_ANSWER,
    Benchmark,
    Purpose,
    Submission,
    mean_by,
    mean_score,
)
from training.evaluation.questions import Answer, Picture, Question

TEST_DEV, TEST, VALIDATION = "test-dev2015", "test2015", "val2014"
SPLITS = {
    "ask": [TEST_DEV, TEST, VALIDATION],
    "score": [VALIDATION, TEST_DEV],
    "submit": [TEST, TEST_DEV, VALIDATION],
}
"""Looked for by purpose. The server takes only files with all ids of the whole of test2015."""
PARQUET_SPLITS = {TEST_DEV: "testdev", TEST: "test", VALIDATION: "validation"}


class VQAv2(Benchmark):
    """Scored by vqaEval.py where the answers are public, else written for the server."""

    name = "vqav2"
    title = "VQAv2"
    aliases = ("vqa", "vqa_v2")
    folders = ("vqav2", "VQAv2", "vqa_v2")
    split = "test-dev (by the server), or val"
    has_splits = True
    metric = "mean soft accuracy x 100"
    script = "vqaEval.py of GT-Vision-Lab/VQA, of LLaVA's convert_vqav2_for_submission.py's answers"
    layout = (
        "llava_vqav2_mscoco_test-dev2015.jsonl with test2015/ (LLaVA's; for the server also "
        "llava_vqav2_mscoco_test2015.jsonl, all of whose ids it wants), or "
        "v2_OpenEnded_mscoco_SPLIT_questions.json with test2015/ or val2014/; to score: "
        "v2_mscoco_val2014_annotations.json; or Parquet of lmms-lab/VQAv2",
    )
    source = "visualqa.org, LLaVA's eval.zip, lmms-lab/VQAv2"
    questions = 107394
    digits = 2
    paper: ClassVar = {"7B": 79.1, "13B": 80.0}
    is_binary = False

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions of test-dev, or of val where scores are wanted."""
        splits = [split] if split else SPLITS[purpose]
        if purpose == "submit" and split == TEST_DEV:
            splits = [TEST, TEST_DEV]
        for name in splits:
            rows = self._rows(folder, name)
            if rows is not None:
                return [_question(row, name) for row in rows]
        raise folder.missing(f"questions of {' or '.join(splits)}")

    def _rows(self, folder: Folder, split: str) -> list[Row] | None:
        """Returns question_id, prompt, picture and, where public, annotation."""
        labels = _annotations(folder, split)
        path = folder.find(f"llava_vqav2_mscoco_{split}.jsonl")
        if path is not None:
            return [
                {
                    "question_id": row["question_id"],
                    "prompt": row["text"],
                    "picture": _file(folder, split, row["image"]),
                    "annotation": labels.get(str(row["question_id"]), {}),
                }
                for row in read_jsonl(path, ("question_id", "image", "text"))
            ]
        path = folder.find(
            f"v2_OpenEnded_mscoco_{split}_questions.json",
            f"*/v2_OpenEnded_mscoco_{split}_questions.json",
        )
        if path is not None:
            return _official(folder, split, path, labels)
        paths = folder.parquet(PARQUET_SPLITS.get(split, split))
        return _of_parquet(paths) if paths else None

    def grade(self, answer: Answer) -> None:
        """Scores what LLaVA's script would submit; a missing answer is an empty one."""
        answer.parsed = eval_ai(answer.text or "")
        given = answer.question.facts.get("answers")
        if given:
            answer.score = vqa_eval_score(answer.parsed, given)

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the accuracy by type of answer and of question."""
        rounded = {
            "per_answer_type": mean_by(answers, "answer_type"),
            "per_question_type": mean_by(answers, "question_type"),
        }
        raw = [
            vqa_eval_score(answer.text or "", answer.question.facts["answers"])
            for answer in answers
            if answer.question.facts.get("answers")
        ]
        parts: dict[str, Any] = {
            name: {label: round(value, 2) for label, value in values.items()}
            for name, values in rounded.items()
        }
        parts["overall"] = round(mean_score(answers), 2)
        parts["overall_of_raw_text"] = round(100 * sum(raw) / len(raw), 2) if raw else 0.0
        return parts

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns a list of all ids, an empty answer where there is none."""
        rows = [
            {"question_id": answer.question.question_id, "answer": answer.parsed}
            for answer in answers
        ]
        return Submission("vqav2_results.json", json.dumps(rows).encode())


def _question(row: Row, split: str) -> Question:
    annotation = row["annotation"]
    answers = [one["answer"] for one in annotation.get("answers", [])]
    return Question(
        question_id=row["question_id"],
        prompt=row["prompt"],
        picture=row["picture"],
        facts={
            "split": split,
            "answers": answers,
            "answer_type": annotation.get("answer_type"),
            "question_type": annotation.get("question_type"),
        },
    )


def _annotations(folder: Folder, split: str) -> dict[str, Row]:
    """Returns what people answered, by question id; {} where it is not public."""
    name = f"v2_mscoco_{split}_annotations.json"
    path = folder.find(name, f"*/{name}")
    if path is None:
        return {}
    rows = with_fields(read_json(path), ("annotations",), str(path))["annotations"]
    return {
        str(with_fields(row, ("question_id", "answers"), str(path))["question_id"]): row
        for row in rows
    }


def _official(folder: Folder, split: str, path: Path, labels: dict[str, Row]) -> list[Row]:
    rows = []
    for row in with_fields(read_json(path), ("questions",), str(path))["questions"]:
        with_fields(row, ("question_id", "image_id", "question"), str(path))
        number = str(row["question_id"])
        if labels and number not in labels:
            raise ConfigError(
                f"{path} asks {number}, of which v2_mscoco_{split}_annotations.json says nothing: "
                "the two are of different splits, or one is not whole; get both again"
            )
        images = "test2015" if split.startswith("test") else split
        image = row["image_id"]
        name = f"COCO_{images}_{image:012d}.jpg" if isinstance(image, int) else str(image)
        rows.append(
            {
                "question_id": row["question_id"],
                "prompt": row["question"] + SHORT_ANSWER,
                "picture": _file(folder, split, name),
                "annotation": labels.get(number, {}),
            }
        )
    return rows


def _file(folder: Folder, split: str, image: str) -> Picture:
    images = "test2015" if split.startswith("test") else split
    return Picture(name=image, path=str(folder.folder(images) / image))


def _of_parquet(paths: list[Path]) -> list[Row]:
    columns = ("question_id", "image", "question")
    optional = ("answers", "answer_type", "question_type", "image_id")
    return [
        {
            "question_id": row["question_id"],
            "prompt": row["question"] + SHORT_ANSWER,
            "picture": Picture(
                name=str(row.get("image_id", f"{path.name}:{number}")), path=str(path), row=number
            ),
            "annotation": {**row, "answers": row.get("answers") or []},
        }
        for path, number, row in read_parquet(paths, columns, optional)
    ]


BENCHMARK = VQAv2()
