"""VizWiz: questions that blind people asked about their own photographs."""

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_json, read_jsonl, read_parquet, with_fields
from training.evaluation.metrics.consensus import eval_ai_score, vqa_eval_score
from training.evaluation.metrics.normalise import eval_ai
from training.evaluation.protocol import (
    SHORT_ANSWER,
    UNANSWERABLE,
    Benchmark,
    Purpose,
    Submission,
    mean_score,
)
from training.evaluation.questions import Answer, Picture, Question


class VizWiz(Benchmark):
    """Scored on val, as lmms-eval does; test is written for the server."""

    name = "vizwiz"
    title = "VizWiz"
    aliases = ("vizwiz_vqa",)
    folders = ("vizwiz", "VizWiz", "VizWiz-VQA")
    split = "test (by the server, which is closed), or val"
    has_splits = True
    metric = "mean soft accuracy x 100"
    script = "lmms-eval's vizwiz_vqa; vqa_eval is vqaEval.py's of the submitted answers"
    layout = (
        "llava_test.jsonl with test/ (LLaVA's), or test.json with test/, or val.json with val/ "
        "(it can be scored); or Parquet of lmms-lab/VizWiz-VQA",
    )
    source = "vizwiz.org, LLaVA's eval.zip, lmms-lab/VizWiz-VQA"
    questions = 8000
    paper: ClassVar = {"7B": 54.2, "13B": 56.4}
    is_binary = False

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions of test, or of val where scores are wanted."""
        splits = ["val", "test"] if purpose == "score" else ["test", "val"]
        for name in [split] if split else splits:
            found = self._questions(folder, name)
            if found is not None:
                return found
        raise folder.missing(f"questions of {' or '.join([split] if split else splits)}")

    def _questions(self, folder: Folder, split: str) -> list[Question] | None:
        path = folder.find(f"{split}.json", f"Annotations/{split}.json")
        labels = [] if path is None else read_json(path)
        for number, row in enumerate(labels):
            with_fields(row, ("image", "question"), f"{path}, entry {number}")
        asked = folder.find(f"llava_{split}.jsonl")
        if asked is not None:
            rows = read_jsonl(asked, ("question_id", "image", "text"))
            by_image = {row["image"]: row for row in labels}
            return [
                _question(folder, split, row["question_id"], row["text"], row["image"],
                          by_image.get(row["image"], {}))
                for row in rows
            ]  # fmt: skip
        if path is not None:
            return [
                _question(folder, split, number, _prompt(row["question"]), row["image"], row)
                for number, row in enumerate(labels)
            ]
        paths = folder.parquet(split)
        columns, optional = ("question_id", "image", "question"), ("answers", "category")
        return [
            Question(
                question_id=row["question_id"],
                prompt=_prompt(row["question"]),
                picture=Picture(name=row["question_id"], path=str(path), row=number),
                facts={"answers": _answers(row), "image": f"{row['question_id']}.jpg"},
            )
            for path, number, row in read_parquet(paths, columns, optional)
        ] or None

    def grade(self, answer: Answer) -> None:
        """Scores against the ten answers, both sides normalised."""
        answer.parsed = eval_ai(answer.text or "")
        given = answer.question.facts["answers"]
        if given:
            answer.score = eval_ai_score(answer.text or "", given)

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns the scores of both scripts."""
        scored = [answer for answer in answers if answer.score is not None]
        by_type: dict[str, list[float]] = {}
        for answer in scored:
            value = vqa_eval_score(answer.parsed, answer.question.facts["answers"])
            by_type.setdefault(str(answer.question.facts.get("answer_type")), []).append(value)
        values = [value for group in by_type.values() for value in group]
        return {
            "lmms_eval": mean_score(scored, 1.0),
            "vqa_eval": {
                "overall": round(100 * sum(values) / len(values), 2) if values else 0.0,
                "per_answer_type": {
                    name: round(100 * sum(group) / len(group), 2) for name, group in by_type.items()
                },
            },
        }

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns a list of all pictures and answers.

        Raises:
            ConfigError: if one is missing, which the server refuses.
        """
        absent = [str(a.question.question_id) for a in answers if a.text is None]
        if absent:
            raise ConfigError(
                f"VizWiz: {len(absent)} questions have no answer ({', '.join(absent[:10])} …), and "
                "its server refuses a file without them: answer them all"
            )
        rows = [
            {"image": answer.question.facts["image"], "answer": answer.parsed} for answer in answers
        ]
        return Submission("vizwiz_results.json", json.dumps(rows).encode())


def _prompt(question: str) -> str:
    return question.capitalize() + UNANSWERABLE + SHORT_ANSWER


def _question(
    folder: Folder, split: str, number: int, prompt: str, image: str, row: Row
) -> Question:
    return Question(
        question_id=number,
        prompt=prompt,
        picture=Picture(name=image, path=str(folder.folder(split) / image)),
        facts={
            "answers": _answers(row),
            "answer_type": row.get("answer_type"),
            "image": image,
        },
    )


def _answers(row: Row) -> list[str]:
    """Returns the ten answers, each a text or an object."""
    given = row.get("answers") or []
    return [one["answer"] if isinstance(one, dict) else one for one in given]


BENCHMARK = VizWiz()
