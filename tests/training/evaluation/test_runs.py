import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation.benchmark_folders import golden, words
from training.cli import parse, run
from training.evaluation import evaluate as evaluate_module
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.evaluate import tasks_of
from training.evaluation.generate import Answerer, load_answerer
from training.evaluation.questions import Picture, Question
from training.evaluation.runs import answer_task, exchange, finish_task, image_mode


@pytest.fixture(scope="module")
def answerer(model_folder: str) -> Answerer:
    return load_answerer(model_folder, "fp32", "model")


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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answerer, "answer", answer)
        yield


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("name", list(benchmarks()))
def test_pictures_and_lengths_are_those_of_the_published_scripts(name: str) -> None:
    published = golden("prompts")["decoding_and_image_pipeline"][name]
    chosen = benchmark(name)
    assert chosen.max_new_tokens == published["AlignGPT"]["max_new_tokens"]
    modes = {"process_images": "pad", "image_processor.preprocess": "crop"}
    assert image_mode(chosen, "aligngpt") == modes[published["AlignGPT"]["image"]]
    assert image_mode(chosen, "llava-1.2") == modes[published["LLaVA main"]["image"]]
