from pathlib import Path

import pytest

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import TOLERANCE, golden, read, score, write
from training.evaluation.catalogue import benchmark
from training.evaluation.metrics.choice import scienceqa_letter
from training.evaluation.scoring import score_files


def test_scienceqa_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("scienceqa")["expected"]
    result = score("scienceqa", tmp_path)
    assert result["score"] == pytest.approx(expected["img_acc"], abs=TOLERANCE)
    assert result["image_accuracy"] == pytest.approx(expected["img_acc"], abs=TOLERANCE)
    assert result["accuracy"] == pytest.approx(expected["acc"], abs=TOLERANCE)
    assert (result["image_count"], result["count"]) == (expected["img_total"], expected["count"])
    for row in golden("scienceqa")["rows"]:
        assert scienceqa_letter(row[4] if row[4] is not None else "FAILED") == row[5]


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


def test_the_published_number_is_of_questions_with_a_picture(tmp_path: Path) -> None:
    path = benchmark_folders.scienceqa(tmp_path)
    scored = score_files(benchmark("scienceqa"), str(tmp_path), [path])
    pictured = sum(row[3] for row in golden("scienceqa")["rows"])
    assert scored.notes[0].startswith(f"{pictured} questions, where the published set has 2,017")
