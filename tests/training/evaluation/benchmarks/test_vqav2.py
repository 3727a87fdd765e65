import json
from pathlib import Path

from tests.training.evaluation.benchmark_folders import answer, golden, read, score, write_lines
from training.cli import run


def test_vqav2_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("vqav2")["expected"]
    result = score("vqav2", tmp_path)
    assert result["score"] == result["overall"] == expected["submission"]["overall"]
    assert result["per_answer_type"] == expected["submission"]["perAnswerType"]
    assert result["per_question_type"] == expected["submission"]["perQuestionType"]
    assert result["missing"] == 2 and result["bad_lines"] == 1


def test_vqav2s_server_gets_all_ids_of_test2015(tmp_path: Path) -> None:
    for split, numbers in (("test-dev2015", [2, 7]), ("test2015", [7, 1, 2])):
        rows = [{"question_id": n, "image": "a.jpg", "text": "What?"} for n in numbers]
        write_lines(tmp_path / f"llava_vqav2_mscoco_{split}.jsonl", rows)
    assert [q.question_id for q in read("vqav2", tmp_path)] == [2, 7]
    path = write_lines(tmp_path / "a.jsonl", [answer(2, "Two dogs."), answer(7, "No")])
    words = ["score", "vqav2", "--data", str(tmp_path), "--predictions", path]
    for number, flags in enumerate(([], ["--split", "test-dev2015"])):
        file = tmp_path / f"{number}.json"
        assert run([*words, *flags, "--submission", str(file)]) == 0
        said = {7: "no", 1: "", 2: "2 dogs"}
        assert json.loads(file.read_text()) == [
            {"question_id": n, "answer": text} for n, text in said.items()
        ]
