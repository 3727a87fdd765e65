"""MME: two questions about each picture, one to be affirmed; fourteen tasks."""

import io
import zipfile
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from schemas.errors import ConfigError
from training.evaluation.files import (
    Folder,
    Row,
    check_whole,
    numbered_lines,
    read_jsonl,
    read_parquet,
)
from training.evaluation.metrics.yes_no import mme_answer
from training.evaluation.protocol import SHORT_ANSWER, Benchmark, Purpose, Submission
from training.evaluation.questions import Answer, Picture, Question
from training.evaluation.tally import Sums, Tally, divided, tally_of

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
TASKS = (*PERCEPTION, *COGNITION)
YES_OR_NO = " Please answer yes or no."
ASKED = "llava_mme.jsonl"
RELEASE = "MME_Benchmark_release_version"
PICTURES = (".jpg", ".png", ".jpeg")


class MME(Benchmark):
    """Per task 100 x accuracy + 100 x accuracy+, which wants both questions of a picture right."""

    name = "mme"
    title = "MME"
    folders = ("MME", "mme")
    split = "test, 14 tasks"
    metric = "sum over the ten perception tasks (at most 2000)"
    script = "calculation.py of MME's eval_tool"
    layout = (
        f"{RELEASE}/TASK/ with pictures and question files (for five tasks in images/ and "
        f"questions_answers_YN/), for LLaVA's layout also {ASKED}; or Parquet of lmms-lab/MME",
    )
    source = "github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, lmms-lab/MME"
    questions = 2374
    paper: ClassVar = {"7B": 1527.4, "13B": 1572.0}

    def read(self, folder: Folder, split: str | None, purpose: Purpose) -> list[Question]:
        """Returns the questions in LLaVA's order, or task by task."""
        rows = list(_official(folder))
        asked = folder.find(ASKED)
        if asked is None and not rows:
            paths = folder.parquet("test")
            if paths:
                return _of_parquet(paths)
            raise folder.missing(f"{RELEASE}/existence/*.txt or {ASKED}")
        if asked is None:
            return [_question(row["question_id"], row, row["picture"]) for row in rows]
        if purpose == "score" and not rows:
            raise folder.missing(f"{RELEASE}/TASK/*.txt, whose labels scoring needs")
        return self._of_llava(folder, asked, rows)

    def _of_llava(self, folder: Folder, path: Path, official: list[Row]) -> list[Question]:
        labels = {self.key(row["question_id"], row["question"]): row for row in official}
        questions = []
        for row in read_jsonl(path, ("question_id", "image", "text")):
            label = labels.get(self.key(row["question_id"], row["text"]))
            if labels and label is None:
                raise ConfigError(
                    f"{path} asks {row['text'].splitlines()[0]!r} about {row['question_id']}, "
                    f"which {RELEASE} does not have: it is another version or not whole"
                )
            name = row["image"]
            if label is not None and label["picture"] is not None:
                picture = label["picture"]
            else:
                picture = Picture(name=name, path=str(folder.folder(RELEASE) / name))
            known = label or {"question": row["text"].removesuffix(SHORT_ANSWER), "answer": None}
            questions.append(_question(row["question_id"], known, picture))
        asked = {self.key(one.question_id, one.prompt) for one in questions}
        check_whole(path, [row["question_id"] for key, row in labels.items() if key not in asked],
                    RELEASE)  # fmt: skip
        return questions

    def key(self, question_id: int | str, prompt: str | None) -> Hashable:
        """Returns task, picture and question: the id alone is the picture's."""
        task, _, rest = str(question_id).partition("/")
        stem = rest.rsplit("/", 1)[-1].split(".")[0]
        return task, stem, _bare(prompt or "")

    def grade(self, answer: Answer) -> None:
        """Reads yes, no or other; a missing answer is other, and wrong."""
        answer.parsed = "other" if answer.text is None else mme_answer(answer.text)
        label = answer.question.facts["label"]
        if label is not None:
            answer.score = float(answer.parsed == label)

    def parts(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Returns perception, cognition, and the score of each task."""
        tasks = {}
        for task in TASKS:
            pairs = [pair for pair in _by_picture(answers).items() if pair[0][0] == task]
            if pairs:
                tasks[task] = _task_score([scores for _, scores in pairs])
        others = sum(answer.parsed == "other" for answer in answers)
        return {
            "perception": sum(tasks.get(task, 0.0) for task in PERCEPTION),
            "cognition": sum(tasks.get(task, 0.0) for task in COGNITION),
            "total": sum(tasks.values()),
            "tasks": tasks,
            "other_answers": others,
        }

    def tally(self, answers: Sequence[Answer]) -> Tally:
        """Returns by picture the right answers, answers, pictures all right, and pictures."""
        groups = _by_picture(answers)
        present = [task for task in PERCEPTION if any(name == task for name, _ in groups)]

        def headline(sums: Sums) -> Sums:
            by_task = sums.reshape(*sums.shape[:-1], max(len(present), 1), 4)
            accuracy = divided(by_task[..., 0], by_task[..., 1])
            both = divided(by_task[..., 2], by_task[..., 3])
            total: Sums = 100 * (accuracy + both).sum(axis=-1)
            return total

        units, rows = [], []
        for (task, picture), scores in groups.items():
            if task not in present:
                continue
            row = [0.0] * 4 * len(present)
            first = 4 * present.index(task)
            row[first : first + 4] = [sum(scores), len(scores), float(all(scores)), 1.0]
            units.append(f"{task}/{picture}")
            rows.append(row)
        return tally_of(units, rows or [[0.0] * 4], headline)

    def submission(self, answers: Sequence[Answer]) -> Submission | None:
        """Returns the files that MME's eval_tool reads, zipped."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for task in TASKS:
                lines = [tool_line(a) for a in answers if a.question.facts["task"] == task]
                if lines:
                    entry = zipfile.ZipInfo(f"{task}.txt", (1980, 1, 1, 0, 0, 0))
                    archive.writestr(entry, "".join(lines))
        return Submission("mme_eval_tool.zip", buffer.getvalue())


def tool_line(answer: Answer) -> str:
    """Returns a line of the eval_tool: file, question, label and answer."""
    facts = answer.question.facts
    stem = str(answer.question.question_id).rsplit("/", 1)[-1].split(".")[0]
    text = " ".join((answer.text or "").split())
    label = (facts["label"] or "").capitalize()
    return f"{stem}.txt\t{facts['line']}\t{label}\t{text}\n"


def _bare(text: str) -> str:
    """Returns a question without what is asked of the answer."""
    asked = text.replace(SHORT_ANSWER.strip(), "").strip()
    return " ".join(asked.removesuffix(YES_OR_NO.strip()).split())


def _task_score(pictures: Sequence[Sequence[float]]) -> float:
    answers = [score for scores in pictures for score in scores]
    both = sum(all(scores) for scores in pictures)
    return 100 * sum(answers) / len(answers) + 100 * both / len(pictures)


def _by_picture(answers: Sequence[Answer]) -> dict[tuple[str, str], list[float]]:
    groups: dict[tuple[str, str], list[float]] = {}
    for answer in answers:
        if answer.score is not None:
            task = answer.question.facts["task"]
            name = str(answer.question.question_id).partition("/")[2]
            stem = name.rsplit("/", 1)[-1].split(".")[0]
            groups.setdefault((task, stem), []).append(answer.score)
    return groups


def _official(folder: Folder) -> Iterator[Row]:
    """Yields the questions of the release, task by task, file by file."""
    roots = [*(place / RELEASE for place in folder.places), *folder.places]
    root = next((root for root in roots if any((root / task).is_dir() for task in TASKS)), None)
    if root is None:
        return
    absent = [task for task in TASKS if not (root / task).is_dir()]
    if absent:
        raise ConfigError(f"MME: {root} has no folder {', '.join(absent)}: get the release again")
    for task in TASKS:
        yield from _task(root, task)


def _task(root: Path, task: str) -> Iterator[Row]:
    has_folders = (root / task / "questions_answers_YN").is_dir()
    words = root / task / "questions_answers_YN" if has_folders else root / task
    pictures = root / task / "images" if has_folders else root / task
    for path in sorted(words.glob("*.txt")):
        image = next(
            (pictures / f"{path.stem}{end}" for end in PICTURES
             if (pictures / f"{path.stem}{end}").is_file()), pictures / f"{path.stem}.jpg",
        )  # fmt: skip
        name = str(image.relative_to(root))
        for number, line in numbered_lines(path):
            question, tab, label = line.strip().partition("\t")
            if not tab or label.strip().lower() not in ("yes", "no"):
                raise ConfigError(f"{path}, line {number} is no question, tab, Yes or No")
            yield {
                "question_id": name,
                "question": question,
                "answer": label.strip().lower(),
                "picture": Picture(name=name, path=str(image)),
            }


def _question(number: str, row: Row, picture: Picture | None) -> Question:
    question = row["question"]
    bare = question.strip().removesuffix(YES_OR_NO.strip()).rstrip()
    return Question(
        question_id=number,
        prompt=bare + SHORT_ANSWER,
        picture=picture,
        facts={
            "task": number.partition("/")[0],
            "label": row["answer"],
            "line": question,
        },
    )


def _of_parquet(paths: list[Path]) -> list[Question]:
    columns = ("question_id", "image", "question", "answer", "category")
    questions = []
    for path, number, row in read_parquet(paths, columns):
        identifier = str(row["question_id"])
        if not identifier.startswith(f"{row['category']}/"):
            identifier = f"{row['category']}/{identifier}"
        label = {"question": row["question"], "answer": row["answer"].strip().lower()}
        picture = Picture(name=identifier, path=str(path), row=number)
        questions.append(_question(identifier, label, picture))
    return questions


BENCHMARK = MME()
