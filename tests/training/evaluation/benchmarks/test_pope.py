import json
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import TOLERANCE, golden, score, write_lines
from training.evaluation.catalogue import benchmark
from training.evaluation.metrics.yes_no import pope_answer
from training.evaluation.scoring import score_files


def test_pope_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("pope")
    result = score("pope", tmp_path)
    assert result["score"] == pytest.approx(vectors["paper_number_mean_f1_x100"], abs=TOLERANCE)
    for category, numbers in vectors["expected"].items():
        assert result[category] == pytest.approx(numbers, abs=TOLERANCE)
    for text, said in vectors["text_to_yesno"]:
        assert pope_answer(text) == said, text


def test_pope_needs_no_question_file_of_llava(tmp_path: Path) -> None:
    path = benchmark_folders.pope(tmp_path)
    (tmp_path / "llava_pope_test.jsonl").unlink()
    result = score_files(benchmark("pope"), str(tmp_path), [path])
    expected = golden("pope")["paper_number_mean_f1_x100"]
    assert result.score == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("has_question_file", [True, False])
def test_pope_labels_of_another_version_are_paired_or_refused(
    tmp_path: Path, has_question_file: bool
) -> None:
    path = benchmark_folders.pope(tmp_path)
    file = tmp_path / "coco" / "coco_pope_random.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    image = rows[0]["image"]
    new = [
        {"image": image, "text": f"Is there a {thing} in the image?", "label": label}
        for thing, label in (("comet", "yes"), ("glacier", "no"))
    ]
    rows = [*rows[:5], *new, *rows[5:]]
    write_lines(file, ({**row, "question_id": i} for i, row in enumerate(rows, start=1)))
    expected = golden("pope")["paper_number_mean_f1_x100"]
    if has_question_file:
        result = score_files(benchmark("pope"), str(tmp_path), [path])
        assert result.score == pytest.approx(expected, abs=TOLERANCE)
        return
    (tmp_path / "llava_pope_test.jsonl").unlink()
    with pytest.raises(ConfigError, match="e3e3926"):
        score_files(benchmark("pope"), str(tmp_path), [path])
