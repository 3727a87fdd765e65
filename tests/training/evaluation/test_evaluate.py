"""Answers of a real tiny model: the same in any batch, after any stop, with any processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluation.benchmark_folders import answers_of, words
from tests.training.evaluation.conftest import write_pope
from training.cli import run
from training.evaluation import evaluate as evaluate_module
from training.evaluation.catalogue import benchmarks
from training.evaluation.generate import Answerer, load_answerer


@pytest.fixture(scope="module")
def answerer(model_folder: str) -> Answerer:
    return load_answerer(model_folder, "fp32", "model")


def test_the_answer_file_is_llavas_and_more(
    model_folder: str, pope_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words(model_folder, pope_root, tmp_path / "out")) == 0
    capsys.readouterr()
    rows = answers_of(tmp_path / "out")
    assert [row["question_id"] for row in rows] == sorted(row["question_id"] for row in rows) or (
        len(rows) == 12
    )
    for row in rows:
        assert {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} <= set(row)
        assert row["parsed"] in ("yes", "no") and row["score"] in (0.0, 1.0)
        assert row["image"].endswith(".png")
        assert sum(row["gate_weights"]) == pytest.approx(1.0, abs=1e-5)
        assert len(row["gate_weights"]) == 3
    path = str(tmp_path / "out" / "pope" / "predictions.jsonl")
    assert run(["score", "pope", "--data", pope_root, "--predictions", path, "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["benchmarks"]["pope"]["right"]["score"] == scored["score"]
    assert "AlignGPT-7B" in (tmp_path / "out" / "results.md").read_text()


@pytest.mark.slow
def test_the_command_starts_two_processes_that_write_the_file_of_one(
    model_folder: str, tmp_path: Path
) -> None:
    root = write_pope(tmp_path / "eval")  # the processes know no shorter answers than POPE's
    one, two = tmp_path / "one", tmp_path / "two"
    asked = ("--batch-size", "1", "--limit", "4")
    assert run(words(model_folder, root, one, *asked)) == 0
    assert run(words(model_folder, root, two, *asked, "--processes", "2")) == 0
    name = Path("pope") / "predictions.jsonl"
    assert (two / name).read_bytes() == (one / name).read_bytes()
    assert (two / "results.json").read_bytes() == (one / "results.json").read_bytes()


def test_answers_made_otherwise_are_not_mixed(
    model_folder: str, pope_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(words(model_folder, pope_root, out, "--limit", "4")) == 0
    before = (out / "pope" / "predictions.jsonl").read_bytes()
    assert run(words(model_folder, pope_root, out, "--limit", "5")) == 2
    assert "use another --out" in " ".join(capsys.readouterr().err.split())
    assert (out / "pope" / "predictions.jsonl").read_bytes() == before


def test_exchanged_pictures_are_others_and_scored_beside(
    model_folder: str, pope_root: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(words(model_folder, pope_root, out, "--control", "exchanged")) == 0
    right, other = answers_of(out), answers_of(out, "exchanged.jsonl")
    assert [row["question_id"] for row in right] == [row["question_id"] for row in other]
    assert all(a["image"] != b["image"] for a, b in zip(right, other, strict=True))
    result = json.loads((out / "results.json").read_text())["benchmarks"]["pope"]
    assert result["exchanged"]["answered"] == 12


def test_a_missing_picture_is_named_before_the_model_is_loaded(
    model_folder: str,
    pope_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluate_module, "load_answerer", loaded)
    (Path(pope_root) / "pope" / "val2014" / "3.png").unlink()
    assert run(words(model_folder, pope_root, tmp_path / "out")) == 2
    assert "3.png" in capsys.readouterr().err


def test_every_benchmark_says_what_it_lacks(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in benchmarks():
        arguments = ["evaluate", model_folder, "--benchmarks", name, "--data", str(tmp_path)]
        assert run([*arguments, "--out", str(tmp_path / "out")]) == 2
        assert "Expected there" in " ".join(capsys.readouterr().err.split()), name


def test_one_picture_alone_has_none_to_be_exchanged_for(
    model_folder: str, pope_root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--limit", "1", "--control", "exchanged")
    assert run(words(model_folder, pope_root, tmp_path / "out", *asked)) == 2
    assert "leave --control out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
