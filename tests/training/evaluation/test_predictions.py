import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from training.evaluation.catalogue import benchmark
from training.evaluation.predictions import AnswerFile, match, read_answers, write_answers
from training.evaluation.questions import Question


def answers(*rows: tuple[Any, str]) -> AnswerFile:
    return AnswerFile("a.jsonl", [{"question_id": i, "text": t} for i, t in rows], None)


QUESTIONS = [Question(question_id=number, prompt=f"{number}?") for number in range(3)]


def test_rows_come_back_and_lines_that_are_none_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"question_id": 1, "text": "ein Bär"}, {"question_id": 2, "text": "x"}]
    write_answers(str(path), rows)
    with path.open("a") as file:
        file.write('[1]\n\n{"question_id": 3, "te')
    found = read_answers(str(path))
    assert (found.rows, found.bad_lines, found.whole) == (rows, [3, 5], None)


def test_a_json_file_is_rows_or_one_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"v1_0": "yes", "v1_1": "no"}, indent=1))
    assert read_answers(str(path)).whole == {"v1_0": "yes", "v1_1": "no"}
    path.write_text(json.dumps([{"question_id": 1, "text": "x"}], indent=1))
    assert read_answers(str(path)).rows == [{"question_id": 1, "text": "x"}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no answers"),
        ("[" * 100_000, "holds no answers"),
        (None, "there is no file"),
    ],
)
def test_a_file_without_answers_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "a.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_answers(str(path))


def test_of_answers_to_one_question_the_last_counts_and_the_others_are_named() -> None:
    found = match(benchmark("vqav2"), QUESTIONS, answers((0, "a"), ("0", "b"), (2, "c"), (9, "d")))
    assert [answer.text for answer in found.answers] == ["b", None, "c"]
    assert (found.duplicates, found.missing, found.extra) == (["0"], ["1"], ["9"])


def test_a_row_without_text_and_a_file_of_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="row 1 has no text"):
        match(benchmark("vqav2"), QUESTIONS, AnswerFile("a", [{"question_id": 0}], None))
    with pytest.raises(ConfigError, match="another split or benchmark"):
        match(benchmark("vqav2"), QUESTIONS, answers((7, "x")))


def test_that_prompts_are_missing_is_said_where_ids_alone_tell_nothing_apart() -> None:
    with pytest.raises(ConfigError, match="rows' prompts"):
        match(benchmark("textvqa"), QUESTIONS, answers((1, "x")))


def test_a_file_from_windows_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"question_id": number, "text": "yes"} for number in (1, 2)]
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in rows))
    found = read_answers(str(path))
    assert (found.rows, found.bad_lines) == (rows, [])
