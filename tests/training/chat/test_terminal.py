import io
import json
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from training.chat.conversation import Conversation
from training.chat.terminal import load_picture
from training.cli import run
from training.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.data.dataset import RawSample, TrainDataset, open_images
from training.evaluation.dataset_loss import dataset_loss
from training.model.answering.decoder import Decoder
from training.model.answering.prompt import conversation_prompt
from training.parts import Assembled, load_folder
from training.train import train


@pytest.fixture(scope="module")
def model_folder(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    out = tmp_path_factory.mktemp("chat") / "run"
    config = TrainConfig(
        told_samples=0,
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
    question = json.loads(str(sample.conversations))[0]["value"].replace("<image>", "").strip()
    asked = asked_tokens(parts, sample, question)
    assert trained.input_ids[: len(asked)] == asked
    assert trained.labels[len(asked)] == trained.input_ids[len(asked)]


def asked_tokens(parts: Assembled, sample: RawSample, question: str) -> list[int]:
    pictures = [{"type": "image", "image": picture} for picture in open_images(sample)]
    content = [*pictures, {"type": "text", "text": question}]
    return conversation_prompt(
        parts.processor, [{"role": "user", "content": content}], "pad"
    ).input_ids


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


def test_piped_lines_are_questions_and_commands(
    model_folder: str,
    picture_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["/levels", f"/image {picture_file}", "what is this?", "/levels", "/level 2", "again"]
    more = ["/levels", "/mode average", "/level", "again", "/levels", "/mode wild", "/dance", ""]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*lines, *more, "/quit", "not asked"])))
    assert run(["chat", model_folder, "--max-new-tokens", "3"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("model: ") == 3
    assert printed.err.count("error: ") == 3
    for said in ("none yet", "adaptive, local, global, average", "there is no /dance"):
        assert said in printed.err.replace("\n", " ")
    mixed = [line for line in printed.out.splitlines() if line.startswith("level ")]
    assert len(mixed) == 12 and all(line.startswith("level 4 (global)") for line in mixed[3::4])
    weights = [float(line.split()[-1]) for line in mixed]
    assert sum(weights[:3]) == pytest.approx(1, abs=0.002) and weights[3] == 1
    assert weights[4:8] == [0, 1, 0, 0]
    assert weights[8:] == [0.333, 0.333, 0.333, 1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--temperature", "3"], "temperature must be in 0..2"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--level", "9"], "must be in 1..4"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(
    model_folder: str, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert run(["chat", model_folder, "--prompt", "hello", *flags]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_what_a_model_says_reaches_the_terminal_without_control_characters(
    model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evil(*_: Any) -> Any:
        yield from ["a\x1b[2J", "\x1b", "]0;title\x07", "\u202e:smile: [red]b"]

    monkeypatch.setattr(Conversation, "answer", evil)
    assert run(["chat", model_folder, "--prompt", "hello"]) == 0
    printed = capsys.readouterr().out
    assert printed == "a\\x1b[2J\\x1b]0;title\\x07\\u202e:smile: [red]b\n"


def press_ctrl_c() -> NoReturn:
    """Interrupts as a terminal does, also where this process was started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)  # the handler may be called a little later
        raise AssertionError("nothing was interrupted")
    finally:
        signal.signal(signal.SIGINT, before)


class Keyboard:
    """A terminal at which someone types, now and then Ctrl-C, and at the end Ctrl-D."""

    def __init__(self, *typed: str | int) -> None:
        self._typed = iter(typed)

    def isatty(self) -> bool:
        return True

    def line(self, prompt: str = "") -> str:
        assert prompt == "you: "
        typed = next(self._typed, None)
        if isinstance(typed, int):
            press_ctrl_c()
        if typed is None:
            raise EOFError
        return str(typed)


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_program(
    model_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keyboard = Keyboard("hello", signal.SIGINT, "again")
    monkeypatch.setattr("sys.stdin", keyboard)
    monkeypatch.setattr("builtins.input", keyboard.line)
    step, steps = Decoder.step, iter([None, signal.SIGINT])

    def interrupted(decoder: Decoder) -> Any:
        number = next(steps, None)
        return press_ctrl_c() if number else step(decoder)

    monkeypatch.setattr(Decoder, "step", interrupted)
    assert run(["chat", model_folder, "--max-new-tokens", "5"]) == 0
    first, second = capsys.readouterr().out.split("model: ")[1:]
    assert "(stopped)" in first and "/quit or Ctrl-D" in first
    assert "(stopped)" not in second


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
    measured, *_ = dataset_loss(
        model_folder,
        [caption_dataset],
        form="caption",
        tokens_per_sequence=128,
        samples=0,
        precision="fp32",
    )
    assert measured.loss == pytest.approx(reported[-1], rel=1e-5)
