import math

import pytest

from training.run.folder import differences
from training.run.run import _named, learning_rate_factor


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_what_decides_what_is_learnt_may_not_differ_and_the_rest_may() -> None:
    one = {"data": ["a"], "config": {"seed": 0, "data": {"workers": 0}, "parallel": {"x": 1}}}
    other = {"data": ["a"], "config": {"seed": 1, "data": {"workers": 2}, "parallel": {"x": 2}}}
    assert [str(found) for found in differences(one, other)] == ["seed was 0 and is now 1"]


<<<<<<< HEAD
=======
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


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_active=True, first_step=0)
    log.write(1, {"train/loss": 2.5})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 2.5}


>>>>>>> main
def test_a_message_names_ten_samples_at_most() -> None:
    keys = [f"{number:032x}" for number in range(1234)]
    assert _named(keys[:10]) == ", ".join(keys[:10])
    assert _named(keys) == ", ".join(keys[:10]) + " and 1,224 more"
