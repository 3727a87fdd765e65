"""Every form in which a benchmark's files come, and what is said of those that are wrong."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import OCR, S, parquet, read, write, write_lines

O = "\nAnswer with the option's letter from the given choices directly."  # noqa: E741


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


def test_pictures_of_another_benchmark_form_are_errors_not_answers(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{"id": 1}])
    with pytest.raises(ConfigError, match="its schema has no question_id"):
        read("pope", tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gqa", "llava_gqa_testdev_balanced.jsonl"),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl"),
        ("mme", "llava_mme.jsonl"),
        ("pope", "llava_pope_test.jsonl"),
    ],
)
def test_a_question_file_cut_off_between_lines_is_refused(
    name: str, file: str, tmp_path: Path
) -> None:
    getattr(benchmark_folders, name)(tmp_path)
    if name == "textvqa":
        write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": []})
    if not (tmp_path / file).exists():
        rows = [(q.question_id, q.picture.name, q.prompt) for q in read(name, tmp_path)]
        names = ("question_id", "image", "text")
        write_lines(tmp_path / file, (dict(zip(names, row, strict=True)) for row in rows))
    whole = (tmp_path / file).read_text().splitlines(keepends=True)
    assert len(read(name, tmp_path)) >= len(whole) - 1
    for count in (len(whole) - 1, 1):
        (tmp_path / file).write_text("".join(whole[:count]))
        with pytest.raises(ConfigError, match="lacks"):
            read(name, tmp_path)
