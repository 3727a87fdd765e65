"""The folders and answer files that the golden vectors are written to, as users have them."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from training.evaluation.catalogue import benchmark
from training.evaluation.questions import Question
from training.evaluation.scoring import score_files

GOLDEN = Path(__file__).parent / "golden"
S = "\nAnswer the question using a single word or phrase."
OCR = "\nReference OCR token: "
TOLERANCE = 1e-6
"""How far a number may be from the published script's, where floating point differs."""


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def answer(number: Any, text: str, prompt: str = "") -> dict[str, Any]:
    """Returns a row as LLaVA's scripts write it."""
    row = {"question_id": number, "prompt": prompt, "text": text, "answer_id": "a"}
    return {**row, "model_id": "llava", "metadata": {}}


def vqav2(folder: Path) -> str:
    vectors = golden("vqav2")
    questions, annotations, answers = [], [], []
    for number, kind, answer_type, given, text, *_ in vectors["rows"]:
        questions.append({"question_id": number, "image_id": number, "question": "what?"})
        people = [{"answer": a, "answer_id": i} for i, a in enumerate(given, start=1)]
        annotations.append(
            {
                "question_id": number,
                "question_type": kind,
                "answer_type": answer_type,
                "answers": people,
            }
        )
        if number not in vectors["missing_from_results"]:
            answers.append(answer(number, text))
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    path = write_lines(folder / "answers.jsonl", answers)
    with Path(path).open("a") as file:
        file.write('{"question_id": 21711')
    return path


def gqa(folder: Path) -> str:
    questions, answers = {}, []
    for number, question, label, balanced, structural, semantic, group, text, _ in golden("gqa")[
        "rows"
    ]:
        questions[number] = {
            "question": question,
            "answer": label,
            "imageId": f"n{number}",
            "isBalanced": balanced,
            "types": {"structural": structural, "semantic": semantic},
            "groups": {"global": group},
        }
        if text is not None:
            answers.append(answer(number, text))
    write(folder / "data" / "testdev_balanced_questions.json", questions)
    return write_lines(folder / "answers.jsonl", answers)


def vizwiz(folder: Path) -> str:
    rows, answers = [], []
    for number, image, question, given, answer_type, text, *_ in golden("vizwiz")["rows"]:
        people = [{"answer": one, "answer_confidence": "yes"} for one in given]
        rows.append(
            {"image": image, "question": question, "answers": people, "answer_type": answer_type}
        )
        answers.append(answer(number, text))
    write(folder / "val.json", rows)
    return write_lines(folder / "answers.jsonl", answers)


def scienceqa(folder: Path) -> str:
    problems, answers = {}, []
    for number, choices, label, has_image, text, *_ in golden("scienceqa")["rows"]:
        problems[number] = {
            "question": "Which?",
            "choices": [f"choice {i}" for i in range(choices)],
            "answer": label,
            "hint": "",
            "image": "image.png" if has_image else None,
        }
        if text is not None:
            answers.append(answer(number, text, "<image>\nWhich?" if has_image else "Which?"))
    write(folder / "problems.json", problems)
    write(folder / "pid_splits.json", {"test": list(problems)})
    return write_lines(folder / "answers.jsonl", answers)


def textvqa(folder: Path) -> str:
    rows, answers = [], []
    for image, number, question, given, prompt, text, _ in golden("textvqa")["rows"]:
        rows.append(
            {"image_id": image, "question_id": number, "question": question, "answers": given}
        )
        answers.append(answer(image, text, prompt))
    write(folder / "TextVQA_0.5.1_val.json", {"data": rows})
    return write_lines(folder / "answers.jsonl", reversed(answers))


FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}


def pope(folder: Path) -> str:
    answers, asked = [], []
    labels: dict[str, list[dict[str, Any]]] = {name: [] for name in FIRST_ID}
    for number, category, question, label, text in golden("pope")["rows"]:
        image = f"COCO_val2014_{number:012d}.jpg"
        own = len(labels[category]) + 1
        labels[category].append(
            {"question_id": own, "image": image, "text": question, "label": label}
        )
        asked.append(
            {"question_id": number, "image": image, "text": question + S, "category": category}
        )
        answers.append(answer(number, text, question + S))
    for category, rows in labels.items():
        write_lines(folder / "coco" / f"coco_pope_{category}.json", rows)
    write_lines(folder / "llava_pope_test.jsonl", asked)
    return write_lines(folder / "answers.jsonl", answers)


def mme(folder: Path) -> str:
    answers = []
    files: dict[tuple[str, int], list[str]] = {}
    for number, task, question, label, text in golden("mme")["rows"]:
        bare = question.removesuffix("Please answer yes or no.").rstrip()
        answers.append(answer(number, text, bare + S))
        files.setdefault((task, number), []).append(f"{question}\t{label}\n")
    root = folder / "MME_Benchmark_release_version"
    for (task, number), lines in files.items():
        words = root / task / ("questions_answers_YN" if "/images/" in number else "")
        words.mkdir(parents=True, exist_ok=True)
        picture = root / number
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
        (words / f"{picture.stem}.txt").write_text("".join(lines))
    return write_lines(folder / "answers.jsonl", answers)


def mmbench(folder: Path, name: str = "mmbench_dev_20230712.tsv") -> str:
    head = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    lines, answers = ["\t".join([*head, "source", "l2-category", "comment", "split"])], []
    for number, hint, question, options, label, category, l2, text, *_ in golden("mmbench")["rows"]:
        cells = [str(number), question, hint or "", *options, *[""] * (4 - len(options))]
        lines.append("\t".join([*cells, label, category, "aGk=", "s", l2, "c", "dev"]))
        answers.append(answer(number, text, question))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return write_lines(folder / "answers.jsonl", answers)


def seed(folder: Path) -> str:
    vectors, answers = golden("seed"), []
    questions = []
    for number, kind, data_type, label, text in vectors["rows"]:
        questions.append(
            {
                "question_id": number,
                "question_type_id": kind,
                "data_type": data_type,
                "data_id": f"{number}",
                "answer": label,
            }
        )
        if text is not None:
            answers.append(answer(int(number) if number.isdigit() else number, text))
    types = {"questions": questions, "question_type": vectors["question_type"]}
    write(folder / "SEED-Bench.json", types)
    return write_lines(folder / "answers.jsonl", answers)


def llavabench(folder: Path) -> str:
    questions, reviews = [], []
    for number, category, pair in golden("llavabench")["rows"]:
        questions.append(
            {"question_id": number, "image": "001.jpg", "category": category, "text": "What?"}
        )
        reviews.append({"question_id": number, "content": "", "tuple": pair})
    write_lines(folder / "questions.jsonl", questions)
    return write_lines(folder / "reviews.jsonl", reviews)


def mmvet(folder: Path, runs: int = 3) -> str:
    questions, grades = {}, {}
    for number, abilities, scores in golden("mmvet")["rows"]:
        questions[number] = {
            "imagename": "v1_0.png",
            "question": "What?",
            "answer": "x",
            "capability": abilities,
        }
        grades[number] = {"model": [], "content": [], "score": scores[:runs]}
    write(folder / "mm-vet.json", questions)
    write(folder / "grades.json", grades)
    return str(folder / "grades.json")


def score(name: str, folder: Path) -> dict[str, Any]:
    """Returns what `score --json` prints of the golden vectors of a benchmark."""
    path = globals()[name](folder)
    return score_files(benchmark(name), str(folder), [path]).to_json()


def score_of(name: str, folder: Path, path: str) -> float:
    """Returns the headline of an answer file."""
    return score_files(benchmark(name), str(folder), [path]).score


def read(name: str, folder: Path, split: str | None = None) -> list[Question]:
    """Returns the questions of a benchmark's files in a folder."""
    chosen = benchmark(name)
    return chosen.read(chosen.folder(str(folder)), split, "ask")


def png(colour: str = "red") -> bytes:
    """Returns a picture file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as the hub does, two to a row group, with a picture in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = ("red", "lime", "blue")
    pictures = [{"bytes": png(colours[i % 3]), "path": None} for i in range(len(rows))]
    full = [{"image": picture, **row} for picture, row in zip(pictures, rows, strict=True)]
    pq.write_table(pa.Table.from_pylist(full), path, row_group_size=2)


def words(model: str, root: str, out: Path, *more: str) -> list[str]:
    """Returns the words that ask a model POPE's questions of a folder."""
    return [
        "evaluate",
        model,
        "--benchmarks",
        "pope",
        "--data",
        root,
        "--out",
        str(out),
        "--precision",
        "fp32",
        *more,
    ]


def answers_of(out: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    """Returns the rows that it wrote."""
    return [json.loads(line) for line in (out / "pope" / name).read_text().splitlines()]
