"""Answers of a real tiny model: the same in any batch, after any stop, with any processes."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import ConfigError
from tests.training.evaluation.benchmark_folders import golden
from tests.training.evaluation.conftest import write_pope
from training.cli import parse, run
from training.data.conversations import VICUNA_V1
from training.evaluation import evaluate as evaluate_module
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.evaluate import tasks_of
from training.evaluation.generate import Answerer, load_answerer
from training.evaluation.questions import Picture, Question
from training.evaluation.runs import answer_task, exchange, finish_task, image_mode
from training.parts import load_folder


def words(model: str, root: str, out: Path, *more: str) -> list[str]:
    return [
        "evaluate",
        model,
        "--benchmarks",
        "pope",
        "--data",
        root,
        "--out",
        str(out),
        "--precision",
        "fp32",
        *more,
    ]


def answers_of(out: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "pope" / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def answerer(model_folder: str) -> Answerer:
    return load_answerer(model_folder, "fp32", "model")


def test_one_eight_and_thirty_two_at_once_say_the_same(
    model_folder: str, pope_root: str, tmp_path: Path
) -> None:
    texts = []
    for size in (1, 8, 32):
        out = tmp_path / str(size)
        assert run(words(model_folder, pope_root, out, "--batch-size", str(size))) == 0
        texts.append([row["text"] for row in answers_of(out)])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) > 1


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


class Stops(Exception):
    """What stands for a kill in the middle of a run."""


def stopping_after(batches: int, answerer: Answerer) -> Iterator[None]:
    """Lets an answerer stop after so many batches."""
    honest, count = answerer.answer, 0

    def answer(*arguments: Any) -> Any:
        nonlocal count
        if count == batches:
            raise Stops
        count += 1
        return honest(*arguments)

    answerer.answer = answer  # type: ignore[method-assign]
    yield
    answerer.answer = honest  # type: ignore[method-assign]


def test_a_run_that_was_killed_goes_on_to_the_same_file(
    model_folder: str, pope_root: str, tmp_path: Path, answerer: Answerer
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(words(model_folder, pope_root, whole, "--batch-size", "2")) == 0
    command: Any = parse(words(model_folder, pope_root, killed, "--batch-size", "2"))
    [task] = tasks_of(command, benchmark("pope"))
    stop = stopping_after(3, answerer)
    next(stop)
    with pytest.raises(Stops):
        answer_task(task, answerer, 0, 1)
    next(stop, None)
    part = killed / "pope" / "progress_right" / "rank-0.jsonl"
    assert len(part.read_text().splitlines()) == 3
    with part.open("a") as file:  # the kill came while a line was written
        file.write('{"fingerprint": "x')
    assert run(words(model_folder, pope_root, killed, "--batch-size", "2")) == 0
    name = Path("pope") / "predictions.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not part.exists()


def test_two_processes_write_the_file_of_one(
    model_folder: str, pope_root: str, tmp_path: Path, answerer: Answerer
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(words(model_folder, pope_root, one, "--batch-size", "2")) == 0
    command: Any = parse(words(model_folder, pope_root, two, "--batch-size", "2"))
    [task] = tasks_of(command, benchmark("pope"))
    for rank in (1, 0):
        with pytest.raises(ConfigError, match="not answered yet"):
            finish_task(task, "model")
        answer_task(task, answerer, rank, 2)
    finish_task(task, evaluate_module.model_name(model_folder))
    name = Path("pope") / "predictions.jsonl"
    assert (two / name).read_bytes() == (one / name).read_bytes()


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


def test_questions_about_one_picture_get_the_same_other(pope_root: str) -> None:
    chosen = benchmark("pope")
    questions = chosen.read(chosen.folder(pope_root), None, "ask")
    others: dict[str, set[str]] = {}
    for own, other in zip(questions, exchange(questions), strict=True):
        assert own.picture is not None and other.picture is not None
        others.setdefault(own.picture.name, set()).add(other.picture.name)
    assert all(len(names) == 1 for names in others.values())


def test_a_picture_is_never_exchanged_for_the_same_file_under_another_name(tmp_path: Path) -> None:
    content = {"a.jpg": b"one", "b.jpg": b"one", "c.jpg": b"another", "d.jpg": b"one"}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    pictures = [Picture(name=name, path=str(tmp_path / name)) for name in content]
    pictures.append(Picture(name="e.jpg", encoded=base64.b64encode(b"one").decode()))
    asked = exchange([Question(question_id=p.name, prompt="", picture=p) for p in pictures])
    got = {question.question_id: question.picture for question in asked}
    assert len(got) == 5
    assert all(
        other is not None and other.name == "c.jpg" for key, other in got.items() if key != "c.jpg"
    )


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


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "--list"]) == 0
    printed = capsys.readouterr().out
    for chosen in benchmarks().values():
        assert chosen.name in printed and chosen.title in printed


@pytest.mark.parametrize("name", list(benchmarks()))
def test_pictures_and_lengths_are_those_of_the_published_scripts(name: str) -> None:
    published = golden("prompts")["decoding_and_image_pipeline"][name]
    chosen = benchmark(name)
    assert chosen.max_new_tokens == published["AlignGPT"]["max_new_tokens"]
    modes = {"process_images": "pad", "image_processor.preprocess": "crop"}
    assert image_mode(chosen, "aligngpt") == modes[published["AlignGPT"]["image"]]
    assert image_mode(chosen, "llava-1.2") == modes[published["LLaVA main"]["image"]]


def test_a_prompt_is_vicunas_to_the_letter(model_folder: str) -> None:
    answerer = Answerer(load_folder(model_folder, torch.float32), "vicuna_v1")
    bos = answerer._processor.tokenizer.bos_token
    for name, given, expected in golden("prompts")["rows"]:
        if isinstance(given, str):
            text = answerer.text(given, has_picture=True)
            assert text.removeprefix(bos) == expected, name
    assert answerer._processor.chat_template == VICUNA_V1


def test_pictures_are_seen_as_stored(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    picture = Picture(name="turned.jpg", path=str(path)).open()
    assert picture.size == (40, 20) and picture.getexif().get(0x0112) is None
