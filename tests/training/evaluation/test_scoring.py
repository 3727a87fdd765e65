import json
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from training.cli import run
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.scoring import score_files


@pytest.mark.parametrize("name", list(benchmarks()))
def test_score_prints_one_json_object(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "mmbench_cn":
        path = benchmark_folders.mmbench(tmp_path, "mmbench_dev_cn_20231003.tsv")
    else:
        path = getattr(benchmark_folders, name)(tmp_path)
    words = ["score", name, "--data", str(tmp_path), "--predictions", path]
    assert run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["benchmark"] == name
    low, high = result["interval"]
    assert low <= result["score"] + 0.06 and result["score"] - 0.06 <= high
    assert run(words) == 0
    assert "95 % interval" in capsys.readouterr().out


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
