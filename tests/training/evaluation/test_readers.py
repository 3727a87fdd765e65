"""Every form in which a benchmark's files come, and what is said of those that are wrong."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import S, golden, write, write_lines
from training.evaluation.benchmarks.mmbench import MMBench
from training.evaluation.catalogue import benchmark
from training.evaluation.compare import compared
from training.evaluation.questions import Question
from training.evaluation.scoring import Scored, score_files

O = "\nAnswer with the option's letter from the given choices directly."  # noqa: E741
OCR = "\nReference OCR token: "


def png(colour: str = "red") -> bytes:
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


def read(name: str, folder: Path, split: str | None = None) -> list[Question]:
    chosen = benchmark(name)
    return chosen.read(chosen.folder(str(folder)), split, "ask")


FORMS: dict[str, tuple[str, dict[str, Any], str]] = {
    "vqav2": (
        "data/testdev-00000-of-00002.parquet",
        {"question_id": 7, "question": "What?"},
        f"What?{S}",
    ),
    "vizwiz": (
        "data/val-00000-of-00001.parquet",
        {"question_id": "VizWiz_val_00000007", "question": "WHAT is This?", "answers": ["a"] * 10},
        "What is this?\nWhen the provided information is insufficient, respond with "
        f"'Unanswerable'.{S}",
    ),
    "scienceqa": (
        "ScienceQA-FULL/test-00000-of-00001.parquet",
        {"question": "Which  one?", "choices": ["a", "b"], "answer": 1, "hint": "Look."},
        f"Context: Look.\nWhich one?\nA. a\nB. b{O}",
    ),
    "textvqa": (
        "data/validation-00000-of-00003.parquet",
        {"image_id": "a1", "question": "what?", "answers": ["x"] * 10, "ocr_tokens": ["Z", "2"]},
        f"What?{OCR}Z, 2{S}",
    ),
    "pope": (
        "Full/adversarial-00000-of-00001.parquet",
        {"question_id": "1", "question": "Is it?", "answer": "yes", "category": "adversarial"},
        f"Is it?{S}",
    ),
    "mme": (
        "data/test-00000-of-00002.parquet",
        {
            "question_id": "count/1.png",
            "question": "Is it?  Please answer yes or no.",
            "answer": "Yes",
            "category": "count",
        },
        f"Is it?{S}",
    ),
    "mmbench": (
        "en/dev-00000-of-00001.parquet",
        {
            "index": 7,
            "question": "Which?",
            "hint": "nan",
            "A": "p",
            "B": "q",
            "C": "nan",
            "D": "nan",
            "answer": "A",
        },
        f"Which?\nA. p\nB. q{O}",
    ),
    "mmbench_cn": (
        "cn/dev-00000-of-00001.parquet",
        {"index": 7, "question": "哪个?", "hint": "提示", "A": "一", "B": "二", "answer": "A"},
        "提示\n哪个?\nA. 一\nB. 二\n请直接回答选项字母。",
    ),
    "seed": (
        "data/test-00000-of-00002.parquet",
        {
            "question_id": "7",
            "question": "Which?",
            "choice_a": "p",
            "choice_b": "q",
            "choice_c": "r",
            "choice_d": "s",
            "answer": "A",
            "question_type_id": 1,
            "data_type": "image",
        },
        f"Which?\nA. p\nB. q\nC. r\nD. s{O}",
    ),
    "llavabench": (
        "data/train-00000-of-00001.parquet",
        {
            "question_id": 0,
            "question": "What?",
            "caption": "c",
            "gpt_answer": "g",
            "category": "conv",
        },
        "What?",
    ),
    "mmvet": (
        "data/test-00000-of-00001.parquet",
        {"question_id": "v1_0", "question": "What?", "answer": "a", "capability": "ocr,math"},
        "What?",
    ),
}


@pytest.mark.parametrize("name", list(FORMS))
def test_the_parquet_of_lmms_eval_is_read(name: str, tmp_path: Path) -> None:
    path, row, prompt = FORMS[name]
    identifier = next((key for key in ("question_id", "index") if key in row), None)
    rows = [dict(row) for _ in range(3)]
    for number in range(1, 3):
        if identifier is not None and isinstance(row[identifier], int):
            rows[number][identifier] = row[identifier] + number
    parquet(tmp_path / path, rows)
    questions = read(name, tmp_path)
    assert [question.prompt for question in questions] == [prompt] * 3
    pictures = [q.picture.open().getpixel((0, 0)) for q in questions if q.picture is not None]
    assert pictures == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_gqa_parquet_finds_its_pictures_in_the_other_config(tmp_path: Path) -> None:
    row = {"id": "201", "imageId": "n1", "question": "Is it?", "answer": "yes"}
    instructions = tmp_path / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet"
    instructions.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([row]), instructions)
    images = tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet"
    parquet(images, [{"id": "n0"}, {"id": "n1"}])
    [question] = read("gqa", tmp_path)
    assert question.prompt == f"Is it?{S}" and question.facts["answer"] == "yes"
    assert question.picture is not None and question.picture.open().getpixel((0, 0)) == (0, 255, 0)


def test_mmbench_builds_the_published_prompts() -> None:
    encoded = base64.b64encode(png()).decode()
    for name, given, expected in golden("prompts")["rows"]:
        if name.startswith("mmbench"):
            chosen: Any = benchmark(name)
            row = {"image": encoded, **given}
            assert isinstance(chosen, MMBench)
            prompt = chosen._question(row, "dev", None).prompt  # type: ignore[arg-type]
            assert expected.endswith(f"USER: <image>\n{prompt} ASSISTANT:")


def test_scienceqa_asks_and_records_the_published_prompts(tmp_path: Path) -> None:
    given = [row for row in golden("prompts")["rows"] if row[0] == "scienceqa"]
    recorded = golden("prompts")["scienceqa_prompt_field_written_to_answers"]
    for number, (_, entry, expected) in enumerate(given):
        folder = tmp_path / str(number)
        problem = {"choices": ["a", "b", "c"], "answer": 0, "image": entry.get("image")}
        write(folder / "problems.json", {entry["id"]: problem})
        write(folder / "pid_splits.json", {"test": [entry["id"]]})
        write(folder / "llava_test_CQM-A.json", [entry])
        [question] = read("scienceqa", folder)
        token = "<image>\n" if entry.get("image") else ""
        assert expected.endswith(f"USER: {token}{question.prompt} ASSISTANT:")
        assert question.prompt_in_answers == recorded[number]


def test_textvqa_prompts_have_the_ocr_tokens_of_rosetta(tmp_path: Path) -> None:
    row = {"image_id": "a", "question": "what Is it?", "answers": ["x"] * 10}
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    with pytest.raises(ConfigError, match="OCR tokens"):
        read("textvqa", tmp_path)
    tokens = {"data": [{"image_id": "a", "ocr_tokens": []}]}
    write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", tokens)
    assert [q.prompt for q in read("textvqa", tmp_path)] == [f"What is it?{OCR}{S}"]


def test_a_whole_root_of_llavas_is_read_too(tmp_path: Path) -> None:
    for name, folder in (("pope", "pope"), ("gqa", "gqa"), ("seed", "seed_bench")):
        getattr(benchmark_folders, name)(tmp_path / folder)
        assert read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("pope", "coco/coco_pope_random.json", '{"question_id": 1}\n', "has no image"),
        ("pope", "coco/coco_pope_random.json", '{"question_id": 1, "im', "not whole"),
        ("gqa", "data/testdev_balanced_questions.json", '{"1": {"que', "no JSON"),
        ("seed", "SEED-Bench.json", '{"questions": []}', "has no question_type"),
        ("mmbench", "mmbench_dev_20230712.tsv", "index\tA\n1\tx\n", "has no question"),
        ("mmbench", "mmbench_dev_20230712.tsv", "index\tquestion\tA\tB\timage\n1\tx\n", "columns"),
        ("scienceqa", "problems.json", "{}", "lacks"),
        ("mmvet", "mm-vet.json", '{"v1_0": {}}', "has no imagename"),
        ("mme", "MME_Benchmark_release_version/count/1.txt", "no tab\n", "is no question"),
    ],
)
def test_a_wrong_file_is_named(
    name: str, file: str, content: str, said: str, tmp_path: Path
) -> None:
    getattr(benchmark_folders, name)(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=said):
        read(name, tmp_path)


def test_questions_that_the_annotations_do_not_know_are_refused(tmp_path: Path) -> None:
    benchmark_folders.gqa(tmp_path)
    asked = [{"question_id": "999", "image": "n1.jpg", "text": f"Is it?{S}"}]
    write_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", asked)
    with pytest.raises(ConfigError, match="different splits"):
        read("gqa", tmp_path)


def test_pictures_of_another_benchmark_form_are_errors_not_answers(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{"id": 1}])
    with pytest.raises(ConfigError, match="its schema has no question_id"):
        read("pope", tmp_path)


def test_missing_twice_and_unknown_answers_are_counted_and_named(tmp_path: Path) -> None:
    path = Path(benchmark_folders.seed(tmp_path))
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    other = json.dumps({**row, "text": "Z"})
    unknown = json.dumps({**row, "question_id": 1})
    path.write_text("\n".join([*lines[:-1], other, unknown, '{"question_id": 5']) + "\n")
    result = score_files(benchmark("seed"), str(tmp_path), [str(path)]).to_json()
    lost = str(json.loads(lines[-1])["question_id"])
    assert lost in result["missing_ids"]
    assert (result["duplicates"], result["duplicates_ids"]) == (1, [str(row["question_id"])])
    assert (result["extra"], result["extra_ids"], result["bad_lines"]) == (1, ["1"], 1)
    assert any("not answered" in note for note in result["notes"])


def test_answers_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    benchmark_folders.pope(tmp_path / "pope")
    path = benchmark_folders.gqa(tmp_path / "gqa")
    with pytest.raises(ConfigError, match="another split or benchmark"):
        score_files(benchmark("pope"), str(tmp_path), [path])


def test_submissions_are_what_the_published_scripts_wrote(tmp_path: Path) -> None:
    def sent(name: str) -> Any:
        path = getattr(benchmark_folders, name)(tmp_path / name)
        scored = score_files(benchmark(name), str(tmp_path / name), [path])
        submission = scored.benchmark.submission(scored.answers)
        assert submission is not None
        return submission.content

    rows = golden("vqav2")["rows"]
    assert json.loads(sent("vqav2")) == [{"question_id": r[0], "answer": r[5]} for r in rows]
    assert json.loads(sent("vizwiz"))[:3] == golden("vizwiz")["upload_first3"]
    assert json.loads(sent("seed").splitlines()[0]) == {"question_id": "457280", "prediction": "B"}

    from openpyxl import load_workbook

    sheet: Any = load_workbook(io.BytesIO(sent("mmbench"))).active
    table = list(sheet.iter_rows(values_only=True))
    assert list(table[0]) == golden("mmbench")["xlsx_columns"]["AlignGPT"]
    assert table[1][:4] == (177, "Which object is near the garden?", "lamp", "boat")


def scored_pope(folder: Path, texts: dict[int, str]) -> Scored:
    path = Path(benchmark_folders.pope(folder))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["text"] = texts.get(row["question_id"], row["text"])
    return score_files(benchmark("pope"), str(folder), [write_lines(path, rows)])


def test_two_models_are_compared_on_the_same_questions(tmp_path: Path) -> None:
    labels = {row[0]: row[3].capitalize() for row in golden("pope")["rows"]}
    first = scored_pope(tmp_path / "first", {})
    second = scored_pope(tmp_path / "second", labels)
    same = compared(first, first)
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)
    better = compared(first, second)
    assert better.second == 100.0
    assert better.difference == pytest.approx(100.0 - first.score)
    assert better.interval[0] > 0 and better.p_value is not None and better.p_value < 1e-6
    wrong = sum(answer.score == 0 for answer in first.answers)
    assert (better.only_first, better.only_second) == (0, wrong)
