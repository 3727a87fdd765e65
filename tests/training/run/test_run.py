import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from schemas.errors import ConfigError
from training.cli import parse, run
from training.config import DataConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.engine.deepspeed import deepspeed_config
from training.engine.start import parameter_groups
from training.metrics.flops import ModelSize, peak_flops
from training.metrics.log import MetricsLog, draw_loss, read_metrics
from training.parts import from_parts
from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES, finetune_7b, pretrain_13b
from training.run.folder import differences
from training.run.run import _named, learning_rate_factor


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate_factor(0, 10, 0.0) == 1.0


def test_the_sequences_of_a_step_must_be_dealt_out_evenly() -> None:
    config = TrainConfig(data=DataConfig(sequences_per_step=12, sequences_per_device=2))
    assert config.accumulation(3) == 2
    with pytest.raises(ConfigError, match=r"multiple of processes .* = 4 x 2, got 12"):
        config.accumulation(4)


def test_each_number_of_deepspeeds_configuration_comes_from_ours() -> None:
    config = TrainConfig(
        data=DataConfig(sequences_per_step=16, sequences_per_device=2),
        optimizer=OptimizerConfig(max_gradient_norm=0.5),
        parallel=ParallelConfig(zero_stage=3, precision="bf16", offload="all"),
    )
    filled = deepspeed_config(config, processes=4, has_gpu=False)
    assert filled["train_micro_batch_size_per_gpu"] == 2
    assert filled["gradient_accumulation_steps"] == 2
    assert filled["gradient_clipping"] == 0.5
    assert filled["bf16"] == {"enabled": True}
    assert filled["zero_optimization"]["stage"] == 3
    assert filled["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert filled["data_types"]["grad_accum_dtype"] == "fp32"


def test_a_group_of_weights_stays_below_what_zero_copies_at_once() -> None:
    linear = torch.nn.Linear(20_000, 20_000, bias=False, device="meta")
    model = torch.nn.ModuleDict({"language_model": torch.nn.Sequential(*[linear] * 3)})
    several = [torch.nn.Linear(20_000, 10_000, bias=False, device="meta") for _ in range(5)]
    model["projector"] = torch.nn.Sequential(*several)
    groups = parameter_groups(model, TrainConfig())
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    assert sizes == [400_000_000, 400_000_000, 400_000_000, 200_000_000]
    learnt = [id(p) for group in groups for p in group["params"]]
    assert sorted(learnt) == sorted(id(p) for p in model.parameters())


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bf16 needs parallel\.zero_stage 1"):
        ParallelConfig(zero_stage=0, precision="bf16")
    with pytest.raises(ConfigError, match="offload all needs"):
        ParallelConfig(zero_stage=2, offload="all")
    with pytest.raises(ConfigError, match="must not be negative"):
        DataConfig(weights=(1.0, -1.0))
    with pytest.raises(ConfigError, match=r"part_learning_rates must be positive, got gate 0\.0"):
        OptimizerConfig(part_learning_rates={"gate": 0.0})


def test_the_papers_recipes_have_its_numbers() -> None:
    assert pretrain_13b().optimizer.learning_rate == 1e-3
    assert pretrain_13b().parallel.zero_stage == 2
    assert finetune_7b().optimizer.learning_rate == 2e-5
    assert finetune_7b().parallel.zero_stage == 3
    assert finetune_7b().optimizer.warmup_ratio == 0.03
    assert "level_vectors" not in finetune_7b().train_parts
    without = PRETRAIN_RECIPES["pretrain_7b_none"]()
    assert without.model.alignment_mode == "none"
    assert without.train_parts == ("projector",)
    assert "gate" not in FINETUNE_RECIPES["finetune_7b_average"]().train_parts
    assert FINETUNE_RECIPES["finetune_7b_4_levels"]().model.num_levels == 4


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_active=True, first_step=0)
    for step in range(5):
        log.write(step, {"train/loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')
    log = MetricsLog(tmp_path, is_active=True, first_step=2)
    log.write(3, {"train/loss": 9.0})
    log.close()
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [(entry["step"], entry["train/loss"]) for entry in entries] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 9.0),
    ]
    draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_arithmetic_of_a_step_is_counted_by_the_formula() -> None:
    size = ModelSize(
        language_parameters=1000,
        head_parameters=300,
        is_language_trained=True,
        layers=2,
        hidden_size=10,
        vision_parameters=100,
        vision_tokens_per_image=5,
    )
    attention, tower = 6 * 2 * 10 * 30 * 50, 2 * 100 * 5 * 3
    assert size.step_flops(50, 20, 30.0, 3) == 6 * (1000 * 50 + 300 * 20) + attention + tower
    frozen = replace(size, is_language_trained=False)
    assert frozen.step_flops(50, 20, 30.0, 3) == 4 * (1000 * 50 + 300 * 20) + attention + tower
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("an unknown device") is None
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40") is None


def test_what_decides_what_is_learnt_may_not_differ_and_the_rest_may() -> None:
    one = {"data": ["a"], "config": {"seed": 0, "data": {"workers": 0}, "parallel": {"x": 1}}}
    other = {"data": ["a"], "config": {"seed": 1, "data": {"workers": 2}, "parallel": {"x": 2}}}
    assert [str(found) for found in differences(one, other)] == ["seed was 0 and is now 1"]


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


def test_a_message_names_ten_samples_at_most() -> None:
    keys = [f"{number:032x}" for number in range(1234)]
    assert _named(keys[:10]) == ", ".join(keys[:10])
    assert _named(keys) == ", ".join(keys[:10]) + " and 1,224 more"
