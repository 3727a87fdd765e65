from pathlib import Path

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import (
    OCR,
    TOLERANCE,
    S,
    golden,
    read,
    score,
    write,
)
from training.evaluation.catalogue import benchmark
from training.evaluation.metrics.consensus import eval_ai_score
from training.evaluation.scoring import score_files


def test_textvqa_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("textvqa")
    result = score("textvqa", tmp_path)
    assert f"Accuracy: {result['score']:.2f}%" in vectors["expected"]["stdout"]
    assert result["samples"] == vectors["expected"]["samples"]
    for row in vectors["rows"]:
        assert eval_ai_score(row[5], row[3]) == pytest.approx(row[6], abs=TOLERANCE)


def test_a_textvqa_row_given_twice_counts_twice(tmp_path: Path) -> None:
    path = Path(benchmark_folders.textvqa(tmp_path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    result = score_files(benchmark("textvqa"), str(tmp_path), [str(path)]).to_json()
    assert (result["samples"], result["duplicates"]) == (71, 1)


def test_textvqa_prompts_have_the_ocr_tokens_of_rosetta(tmp_path: Path) -> None:
    row = {"image_id": "a", "question": "what Is it?", "answers": ["x"] * 10}
    write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [row]})
    with pytest.raises(ConfigError, match="OCR tokens"):
        read("textvqa", tmp_path)
    tokens = {"data": [{"image_id": "a", "ocr_tokens": []}]}
    write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", tokens)
    assert [q.prompt for q in read("textvqa", tmp_path)] == [f"What is it?{OCR}{S}"]
