import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.chat.terminal import Conversation, load_picture
from training.cli import run
from training.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.data.conversations import messages_of
from training.data.dataset import RawSample, TrainDataset, open_images
from training.evaluation.dataset_loss import dataset_loss
from training.parts import Assembled, load_folder
from training.train import train


@pytest.fixture(scope="module")
def model_folder(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    out = tmp_path_factory.mktemp("chat") / "run"
    config = TrainConfig(
        model=ModelConfig(**tiny_parts, num_levels=4),
        data=DataConfig(
            tokens_per_sequence=128,
            sequences_per_step=4,
            workers=0,
            validation_data=(caption_dataset,),
        ),
        parallel=ParallelConfig(precision="fp32"),
        max_steps=1,
    )
    assert train(config, [caption_dataset], str(out))
    return str(out / "model")


@pytest.mark.parametrize("num_images", [1, 2])
def test_a_question_is_asked_with_the_tokens_that_training_teaches(
    model_folder: str, conversation_dataset: str, num_images: int
) -> None:
    parts = load_folder(model_folder, torch.float32)
    dataset = TrainDataset([conversation_dataset])
    sample = next(dataset[i] for i in range(len(dataset)) if dataset[i].num_images == num_images)
    encoder = parts.encoder(DataConfig(form="conversation"))
    trained = encoder.encode(sample)
    assert trained is not None
    question = messages_of(sample)[0]["content"].removeprefix("<image>\n" * num_images)
    asked = asked_tokens(parts, sample, question)
    assert trained.input_ids[: len(asked)] == asked
    assert trained.labels[len(asked)] == trained.input_ids[len(asked)]


def asked_tokens(parts: Assembled, sample: RawSample, question: str) -> list[int]:
    conversation = Conversation(parts, open_images(sample), "conversation", 4)
    ids: list[int] = conversation._inputs(question)["input_ids"][0].tolist()
    return ids


def test_answers_are_printed_in_both_forms(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], picture_file: Path
) -> None:
    words = ["chat", model_folder, "--image", str(picture_file), "--max-new-tokens", "3"]
    assert run([*words, "--prompt", "what is this?"]) == 0
    assert run([*words, "--form", "caption"]) == 0
    two = ["--image", str(picture_file), str(picture_file)]
    assert run(["chat", model_folder, *two, "--prompt", "which?", "--max-new-tokens", "3"]) == 0
    assert run(["chat", model_folder, *two, "--form", "caption"]) != 0
    assert run(["chat", model_folder, "--prompt", "hello", "--max-new-tokens", "3"]) == 0


@pytest.fixture
def picture_file(tmp_path: Path, caption_dataset: str) -> Path:
    path = tmp_path / "picture.png"
    open_images(TrainDataset([caption_dataset])[0])[0].save(path)
    assert load_picture(str(path)).size == (32, 32)
    return path


def test_the_end_of_the_input_ends_the_conversation(
    model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run(["chat", model_folder, "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.count("model: ") == 1


def test_a_conversation_remembers_its_turns(model_folder: str) -> None:
    conversation = Conversation(load_folder(model_folder, torch.float32), [], "conversation", 2)
    first = conversation.ask("hello")
    inputs: Any = conversation._inputs("again")
    text = conversation._parts.processor.tokenizer.decode(inputs["input_ids"][0])
    assert "hello" in text and first in text and text.endswith("assistant\n")


def test_evaluate_prints_the_loss_of_each_level(
    model_folder: str, caption_dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", model_folder, "--data", caption_dataset, "--form", "caption"]
    assert run([*words, "--tokens-per-sequence", "128"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {level} " in printed for level in (1, 2, 3, 4)) and "all" in printed


def test_the_saved_model_has_the_loss_that_training_ended_with(
    model_folder: str, caption_dataset: str
) -> None:
    log = (Path(model_folder).parent / "metrics.jsonl").read_text().splitlines()
    reported = [json.loads(line)["validation/loss"] for line in log if "validation/loss" in line]
    measured, _ = dataset_loss(
        model_folder,
        [caption_dataset],
        form="caption",
        tokens_per_sequence=128,
        samples=0,
        precision="fp32",
    )
    assert measured.loss == pytest.approx(reported[-1], rel=1e-5)
