"""ScienceQA: school questions of multiple choice; those with a picture make the number."""

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import Folder, Row, read_json, read_parquet, with_fields
from training.evaluation.metrics.choice import FAILED, SCIENCEQA_LETTERS, scienceqa_letter
from training.evaluation.protocol import OPTION_LETTER, Benchmark, Purpose, mean_score
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Tally, mean_tally

IMAGE_TOKEN = "<image>"
SPACES = re.compile(r" {2,}")
QUESTIONS = ("llava_test_CQM-A.json",)


class ScienceQA(Benchmark):
    """Letters, read by eval_science_qa.py."""

    name = "scienceqa"
    title = "ScienceQA-IMG"
    aliases = ("sqa", "sqa_img", "scienceqa_img", "scienceqa_full")
    folders = ("scienceqa", "ScienceQA")
    split = "test"
    has_splits = True
    metric = "accuracy x 100 over questions with a picture"
    script = "eval_science_qa.py of LLaVA and AlignGPT, IMG-Accuracy"
    layout = (
        "problems.json and pid_splits.json with images/test/ID/image.png, for LLaVA's layout also "
        "llava_test_CQM-A.json; or Parquet of lmms-lab/ScienceQA (ScienceQA-FULL or -IMG)",
    )
    source = "scienceqa.github.io, LLaVA's docs, lmms-lab/ScienceQA"
    questions = 2017
    max_new_tokens = 1024
    image_mode = "crop"
    paper: ClassVar = {"7B": 68.5, "13B": 70.3}

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns all questions of test, those without a picture among them."""
        name = split or "test"
        path = folder.find("problems.json", "*/problems.json")
        asked = folder.find(f"llava_{name}_CQM-A.json")
        if path is None and asked is None:
            paths = [
                *folder.parquet(name, "ScienceQA-FULL"),
                *folder.parquet(name, "ScienceQA-IMG"),
            ] or folder.parquet(name)
            if paths:
                return _of_parquet([one for one in paths if one.parent == paths[0].parent])
            raise folder.missing("problems.json with pid_splits.json")
        if path is None:
            path = folder.need("problems.json", "*/problems.json")
        problems = read_json(path)
        prompts = {} if asked is None else _llava_prompts(asked)
        numbers = _numbers(folder, problems, name)
        if purpose == "ask" and prompts:
            absent = [number for number in numbers if number not in prompts]
            if absent:
                raise ConfigError(
                    f"{asked} lacks {len(absent)} of the {len(numbers)} questions of "
                    f"pid_splits.json ({', '.join(absent[:5])} …): get it again"
                )
        return [
            _question(
                number,
                with_fields(problems[number], ("choices", "answer"), f"{path}, {number}"),
                _file(folder, name, number, problems[number].get("image")),
                prompts.get(number),
            )
            for number in numbers
        ]

    def published(self, answers: Sequence[Answer]) -> int:
        """Returns how many questions have a picture."""
        return sum(answer.question.facts["has_image"] for answer in answers)

    def grade(self, answer: Answer) -> None:
        """Compares letters; one beyond the choices is wrong."""
        answer.parsed = FAILED if answer.text is None else scienceqa_letter(answer.text)
        facts = answer.question.facts
        letters = SCIENCEQA_LETTERS[: facts["choices"]]
        answer.score = float(answer.parsed in letters and answer.parsed == facts["letter"])

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns accuracy over all and over those with a picture, and how many failed."""
        pictured = multimodal(answers)
        return {
            "accuracy": mean_score(answers),
            "image_accuracy": mean_score(pictured),
            "correct": sum(int(answer.score or 0) for answer in answers),
            "count": len(answers),
            "image_correct": sum(int(answer.score or 0) for answer in pictured),
            "image_count": len(pictured),
            "unparsable": sum(answer.parsed == FAILED for answer in answers),
        }

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns the sums of the accuracy over questions with a picture."""
        pictured = multimodal(answers)
        return mean_tally([a.unit for a in pictured], [float(a.score or 0) for a in pictured])


def multimodal(answers: Sequence[Answer]) -> list[Answer]:
    """Returns the answers that the script counts as of questions with a picture.

    Those whose row's prompt holds `<image>`, so a missing row is none. Where no row's does, as in
    answer files without prompts, those answered whose problem has a picture.
    """
    marked = [answer for answer in answers if IMAGE_TOKEN in (answer.prompt or "")]
    return marked or [
        answer
        for answer in answers
        if answer.text is not None and answer.question.facts["has_image"]
    ]


def _numbers(folder: Folder, problems: Any, split: str) -> list[str]:
    """Returns the problems of a split, in its order."""
    path = folder.need("pid_splits.json", "*/pid_splits.json")
    splits = with_fields(read_json(path), (split,), str(path))
    numbers = [str(number) for number in splits[split]]
    absent = [number for number in numbers if number not in problems]
    if absent:
        raise ConfigError(
            f"problems.json lacks {len(absent)} of the problems in pid_splits.json "
            f"({', '.join(absent[:5])} …): it is not whole, get it again"
        )
    return numbers


def _llava_prompts(path: Any) -> dict[str, str]:
    """Returns what LLaVA's file asks, by problem."""
    return {
        str(row["id"]): row["conversations"][0]["value"]
        for row in (
            with_fields(row, ("id", "conversations"), f"{path}, entry {number}")
            for number, row in enumerate(read_json(path))
        )
    }


def prompt_of(problem: Row) -> str:
    """Returns context, question and options as LLaVA's question file has them."""
    hint = problem.get("hint") or ""
    lines = [f"Context: {hint}"] if hint else []
    lines.append(problem["question"])
    lines += [
        f"{letter}. {choice}"
        for letter, choice in zip(SCIENCEQA_LETTERS, problem["choices"], strict=False)
    ]
    return SPACES.sub(" ", "\n".join(lines))


def _question(
    number: int | str, problem: Row, picture: Picture | None, asked: str | None
) -> Question:
    text = prompt_of(problem) if asked is None and "question" in problem else asked or ""
    prompt = text.replace(IMAGE_TOKEN, "").strip() + OPTION_LETTER
    return Question(
        question_id=number,
        prompt=prompt,
        picture=picture,
        facts={
            "letter": SCIENCEQA_LETTERS[int(problem["answer"])],
            "choices": len(problem["choices"]),
            "has_image": picture is not None,
        },
        recorded_prompt=f"{IMAGE_TOKEN}\n{prompt}" if picture is not None else prompt,
    )


def _file(folder: Folder, split: str, number: str, image: str | None) -> Picture | None:
    if not image:
        return None
    name = f"{number}/{image}"
    root = folder.folder(f"images/{split}", split)
    return Picture(name=name, path=str(root / name))


def _of_parquet(paths: list[Any]) -> list[Question]:
    columns, optional = ("image", "question", "choices", "answer"), ("hint", "id", "pid")
    pictured = _has_picture(paths)
    return [
        _question(
            str(row.get("id") or row.get("pid") or count),
            row,
            Picture(name=f"{path.name}:{number}", path=str(path), row=number) if has else None,
            None,
        )
        for count, ((path, number, row), has) in enumerate(
            zip(read_parquet(paths, columns, optional), pictured, strict=True)
        )
    ]


def _has_picture(paths: list[Any]) -> list[bool]:
    """Returns which rows have a picture."""
    import pyarrow.parquet as pq

    return [
        bool(there)
        for path in paths
        for there in pq.read_table(path, columns=["image"]).column(0).is_valid().to_pylist()
    ]


BENCHMARK = ScienceQA()
