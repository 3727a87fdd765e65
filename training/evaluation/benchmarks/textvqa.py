"""TextVQA: questions about text in pictures, asked with what an OCR system read there."""

from collections.abc import Hashable, Sequence
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
from training.evaluation.metrics.consensus import eval_ai_score
from training.evaluation.metrics.normalise import eval_ai
from training.evaluation.protocol import SHORT_ANSWER, Benchmark, Purpose, mean_score
from training.evaluation.questions import Answer, Picture, Question

ANNOTATIONS = "TextVQA_0.5.1_val.json"
ASKED = "llava_textvqa_val_v051_ocr.jsonl"
OCR = "TextVQA_Rosetta_OCR_v0.2_val.json"


class TextVQA(Benchmark):
    """Soft accuracy of normalised answers, by M4C's evaluator."""

    name = "textvqa"
    title = "TextVQA"
    folders = ("textvqa", "TextVQA")
    split = "val, with OCR tokens in the prompt"
    metric = "mean soft accuracy x 100"
    script = "eval_textvqa.py of LLaVA and AlignGPT, with m4c_evaluator.py"
    layout = (
        f"{ANNOTATIONS} with train_images/ and, to ask, {ASKED} (LLaVA's) or {OCR}; "
        "or Parquet of lmms-lab/textvqa",
    )
    source = "textvqa.org, LLaVA's eval.zip, lmms-lab/textvqa"
    questions = 5000
    paper: ClassVar = {"7B": 58.4, "13B": 60.2}
    is_binary = False
    scores_rows = True

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions of val."""
        path = folder.find(ANNOTATIONS, f"*/{ANNOTATIONS}")
        asked = folder.find(ASKED)
        if path is None and asked is None:
            paths = folder.parquet("validation")
            if paths:
                return _of_parquet(paths)
            raise folder.missing(ANNOTATIONS)
        if purpose == "score" and path is None:
            raise folder.missing(ANNOTATIONS)
        labels = [] if path is None else _annotations(path)
        if purpose == "ask" and asked is not None:
            return self._of_llava(folder, asked, labels)
        tokens = _ocr_tokens(folder) if purpose == "ask" else {}
        return [
            _question(row["image_id"], row, _prompt(row["question"], tokens.get(row["image_id"])),
                      _file(folder, f"{row['image_id']}.jpg"))
            for row in labels
        ]  # fmt: skip

    def _of_llava(self, folder: Folder, path: Any, labels: list[Row]) -> list[Question]:
        by_key = {self.key(row["image_id"], row["question"]): row for row in labels}
        questions = []
        for row in read_jsonl(path, ("question_id", "image", "text")):
            label = by_key.get(self.key(row["question_id"], row["text"]), {})
            if by_key and not label:
                raise ConfigError(
                    f"{path} asks about {row['question_id']} what is not in {ANNOTATIONS}: one of "
                    "them is of another version or not whole; get both again"
                )
            picture = _file(folder, row["image"])
            questions.append(_question(row["question_id"], label, row["text"], picture))
        asked = {self.key(one.question_id, one.prompt) for one in questions}
        check_whole(path, [key for key in by_key if key not in asked], ANNOTATIONS)
        return questions

    def key(self, question_id: int | str, prompt: str | None) -> Hashable:
        """Returns picture and question: the id alone is the picture's."""
        first = (prompt or "").split("\n", 1)[0]
        return str(question_id), first.lower()

    def grade(self, answer: Answer) -> None:
        """Scores against the ten answers, both sides normalised."""
        answer.parsed = None if answer.text is None else eval_ai(answer.text)
        given = answer.question.facts["answers"]
        if given and answer.text is not None:
            answer.score = eval_ai_score(answer.text, given)

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns accuracy and the rows counted."""
        return {
            "accuracy": mean_score(answers),
            "samples": sum(answer.score is not None for answer in answers),
        }


def _annotations(path: Any) -> list[Row]:
    rows: list[Row] = with_fields(read_json(path), ("data",), str(path))["data"]
    for row in rows:
        with_fields(row, ("image_id", "question"), str(path))
    return rows


def _ocr_tokens(folder: Folder) -> dict[str, list[str]]:
    """Returns what Rosetta read in each picture."""
    path = folder.find(OCR, f"*/{OCR}")
    if path is None:
        raise folder.missing(f"{ASKED} or {OCR}, whose OCR tokens the prompt needs (without them "
                             "the published scores drop by about 12 points)")  # fmt: skip
    rows = with_fields(read_json(path), ("data",), str(path))["data"]
    return {row["image_id"]: row.get("ocr_tokens") or [] for row in rows}


def _prompt(question: str, tokens: Sequence[str] | None) -> str:
    found = ", ".join(tokens or [])
    return f"{question.capitalize()}\nReference OCR token: {found}{SHORT_ANSWER}"


def _question(number: str, row: Row, prompt: str, picture: Picture) -> Question:
    facts = {"answers": row.get("answers") or [], "question": row.get("question")}
    return Question(question_id=number, prompt=prompt, picture=picture, facts=facts)


def _file(folder: Folder, image: str) -> Picture:
    return Picture(name=image, path=str(folder.folder("train_images") / image))


def _of_parquet(paths: list[Any]) -> list[Question]:
    columns = ("image_id", "image", "question", "answers", "ocr_tokens")
    return [
        _question(
            row["image_id"],
            row,
            _prompt(row["question"], row["ocr_tokens"]),
            Picture(name=row["image_id"], path=str(path), row=number),
        )
        for path, number, row in read_parquet(paths, columns)
    ]


BENCHMARK = TextVQA()
