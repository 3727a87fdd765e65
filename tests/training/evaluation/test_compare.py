import json
from pathlib import Path

import pytest

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import golden, write_lines
from training.cli import run
from training.evaluation.catalogue import benchmark
from training.evaluation.compare import compared
from training.evaluation.scoring import Scored, score_files


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


def test_what_only_a_server_scores_is_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    path = benchmark_folders.pope(data / "pope")
    asked = [{"question_id": 1, "image": "a.jpg", "text": "What?"}]
    write_lines(data / "vqav2" / "llava_vqav2_mscoco_test-dev2015.jsonl", asked)
    sides = [str(tmp_path / side) for side in "ab"]
    for side in map(Path, sides):
        write_lines(side / "vqav2" / "predictions.jsonl", [{"question_id": 1, "text": "x"}])
        (side / "pope").mkdir()
        (side / "pope" / "predictions.jsonl").write_bytes(Path(path).read_bytes())
    assert run(["compare", *sides, "--data", str(data), "--json"]) == 0
    printed = capsys.readouterr()
    assert list(json.loads(printed.out)) == ["pope"]
    assert "left out: the answers of this split of VQAv2" in printed.err
    assert run(["compare", *sides, "--data", str(data), "--benchmark", "vqav2"]) == 2
