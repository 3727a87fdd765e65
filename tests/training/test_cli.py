import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import ConfigError
from training.cli import parse, run
from training.parts import from_parts
from training.recipes import PRETRAIN_RECIPES


def test_help_comes_without_loading_torch() -> None:
    code = (
        "import sys; from training.cli import run\n"
        "try: run(['finetune', '--help'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert "--optimizer.learning-rate" in done.stdout


def test_flags_override_the_recipe() -> None:
    words = ["finetune", "--recipe", "finetune_13b", "--data", "a", "b", "--init", "m"]
    command = parse([*words, "--out", "o", "--data.sequences-per-step", "8"])
    assert command.data == ("a", "b")
    assert command.config.data.sequences_per_step == 8
    words += ["--out", "o", "--optimizer.part-learning-rates", "projector", "2e-5"]
    assert parse(words).config.optimizer.part_learning_rates == {"projector": 2e-5}
    assert command.config.model.language_model == "lmsys/vicuna-13b-v1.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no command 'train'"),
        (["pretrain", "--recipe", "nothing"], "no recipe 'nothing'"),
        (["chat", "nowhere", "--prompt", "hello"], "nowhere is no model folder"),
        (["serve", "nowhere", "--port", "0"], "nowhere is no model folder"),
        (["serve", "m", "--host", "0.0.0.0"], "ALIGNGPT_API_KEY"),
        (["chat", "m", "--image", "nowhere.png", "--prompt", "a"], "no file nowhere.png"),
    ],
)
def test_what_cannot_run_is_refused_with_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_parts_that_are_not_there_are_named_with_their_setting(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    config = PRETRAIN_RECIPES["demo_pretrain"]()
    parts = replace(config.model, language_model=absent)
    with pytest.raises(ConfigError, match=r"model\.language_model .*absent"):
        from_parts(replace(config, model=parts))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetune"], "stopped; the last checkpoint stays: run the same command again to go on"),
        (["evaluate", "--benchmarks"], "stopped; what was answered stays: run the same command"),
        (["export"], "stopped"),
    ],
)
def test_what_ctrl_c_leaves_is_said_of_the_command_that_it_stopped(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.cli.parse", interrupted)
    assert run(arguments) == 130
    told = capsys.readouterr().err
    assert said in told
    assert ("stays" in told) == ("stays" in said)
