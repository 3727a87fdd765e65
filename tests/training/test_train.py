import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from schemas.errors import ConfigError
from tests.training.conftest import conversation_samples, write_dataset
from tests.training.ranks import COMMAND, own_environment, run_ranks
from training.config import DataConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.model.packing.attention import BY_SAMPLE
from training.parts import assemble, set_attention
from training.train import train


def tiny_config(parts: dict[str, str], **changes: Any) -> TrainConfig:
    data = {
        "tokens_per_sequence": 128,
        "sequences_per_step": 4,
        "validation_ratio": 0.2,
        "workers": 0,
        **changes.pop("data", {}),
    }
    values: dict[str, Any] = {
        "model": ModelConfig(**parts, num_levels=4),
        "data": DataConfig(**data),
        "optimizer": OptimizerConfig(learning_rate=1e-2),
        "parallel": ParallelConfig(zero_stage=2, precision="fp32"),
        "epochs": 2,
        "told_samples": 0,
    }
    return TrainConfig(**{**values, **changes})


def stage_2(parts: dict[str, str], **changes: Any) -> TrainConfig:
    data = {"form": "conversation", **changes.pop("data", {})}
    learning = ("projector", "gate", "language_model")
    optimizer = OptimizerConfig(learning_rate=1e-3)
    return tiny_config(parts, data=data, train_parts=learning, optimizer=optimizer, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has an attention of its own")
@pytest.mark.parametrize(
    ("attention", "compile_blocks", "chosen"),
    [("auto", False, BY_SAMPLE), ("auto", True, "sdpa"), ("eager", False, "eager")],
)
def test_attention_goes_sample_by_sample_on_a_cpu_unless_compiled_or_named(
    tiny_parts: dict[str, str], attention: Any, compile_blocks: bool, chosen: str
) -> None:
    config = tiny_config(
        tiny_parts,
        model=ModelConfig(**tiny_parts, num_levels=4, attention=attention),
        parallel=ParallelConfig(zero_stage=2, precision="fp32", compile_blocks=compile_blocks),
    )
    parts = assemble(config, None)
    assert set_attention(parts, config) == chosen
    assert parts.model.language_model.config._attn_implementation == chosen


def test_where_samples_cannot_be_taken_one_by_one_sdpa_trains_and_says_why(
    tiny_parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.parts.attention_fault", lambda *_, **__: "it differs")
    config = tiny_config(tiny_parts)
    parts = assemble(config, None)
    said = set_attention(parts, config)
    assert said.startswith("sdpa; ")
    assert "sdpa_by_sample does not work here (it differs)" in said
    assert parts.model.language_model.config._attn_implementation == "sdpa"


def logged(out: Path, name: str) -> list[Any]:
    """Returns the values of a metric in a run's log, in the order of the steps."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [entry[name] for entry in entries if name in entry]


@pytest.mark.slow
def test_stage_1_learns_and_leaves_a_model_that_stage_2_starts_from(
    tiny_parts: dict[str, str], caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(tiny_config(tiny_parts, told_samples=4), [caption_dataset], str(one))
    losses = logged(one, "validation/loss")
    assert losses[-1] < losses[0]
    assert (one / "loss.png").stat().st_size > 1000
    assert {f"train/level_{level}_loss" for level in (1, 2, 3, 4)} <= all_names(one)
    check_levels(one)

    stage = stage_2(tiny_parts, told_samples=4)
    assert train(stage, [conversation_dataset], str(two), init=str(one / "model"))
    assert json.loads((two / "levels.json").read_text())["vectors"]["moved"] == [0.0] * 4
    losses = logged(two, "validation/loss")
    assert losses[-1] < losses[0]
    weights = [logged(two, f"gate/level_{level}_weight")[-1] for level in (1, 2, 3)]
    assert sum(weights) == pytest.approx(1.0, abs=1e-4)
    for level, weight in enumerate(weights, start=1):
        [*_, counts] = logged(two, f"gate/level_{level}_weight_histogram")
        middle = sum(n * (part + 0.5) / 10 for part, n in enumerate(counts)) / sum(counts)
        assert middle == pytest.approx(weight, abs=0.051)
    assert (two / "model" / "model.safetensors").exists()


def check_levels(out: Path) -> None:
    """Checks what stage 1 says of its levels at the end."""
    found = json.loads((out / "levels.json").read_text())
    learnt = load_file(out / "model" / "model.safetensors")["level_vectors.weight"]
    assert found["vectors"]["lengths"] == pytest.approx(learnt.norm(dim=1).tolist(), rel=1e-4)
    assert min(found["vectors"]["moved"]) > 0.01
    assert 1 <= found["samples"] <= 4 and set(found["told"]) == {"1", "2", "3", "4"}
    assert found["told"]["4"]["difference"] == 0.0 and found["gate"] == {}
    assert (out / "levels.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_compiled_blocks_learn_what_uncompiled_ones_do(
    zero_stage: Any, tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    losses, graphs = {}, {}
    torchs_own_linear = torch.nn.functional.linear
    for name, compile_blocks in (("compiled", True), ("eager", False)):
        parallel = ParallelConfig(
            zero_stage=zero_stage, precision="fp32", compile_blocks=compile_blocks
        )
        out = tmp_path / name
        torch._dynamo.reset()
        counters.clear()
        assert train(stage_2(tiny_parts, parallel=parallel), [conversation_dataset], str(out))
        losses[name] = logged(out, "train/loss")
        graphs[name] = counters["stats"]["unique_graphs"]
        assert (out / "model" / "model.safetensors").exists()
    assert graphs["compiled"] > graphs["eager"] == 0
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-4)
    assert torch.nn.functional.linear is torchs_own_linear


def all_names(out: Path) -> set[str]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)}


@pytest.mark.slow
def test_neither_packing_nor_accumulation_changes_what_is_learnt(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    """All samples in one step: many a row, few a row in several passes, or one a row."""
    ways = {
        "packed": {"tokens_per_sequence": 512, "sequences_per_step": 8, "sequences_per_device": 8},
        "accumulated": {"tokens_per_sequence": 512, "sequences_per_step": 8},
        "unpacked": {"tokens_per_sequence": 512, "sequences_per_step": 48, "packing_window": 1},
    }
    losses, norms = {}, {}
    for name, data in ways.items():
        out = tmp_path / name
        config = stage_2(tiny_parts, data=data, epochs=1)
        assert train(config, [conversation_dataset], str(out))
        assert len(logged(out, "train/loss")) == 1
        losses[name] = logged(out, "train/loss") + logged(out, "validation/loss")
        norms[name] = logged(out, "train/gradient_norm")
    for name in ("accumulated", "unpacked"):
        assert losses[name] == pytest.approx(losses["packed"], rel=1e-5)
        assert norms[name] == pytest.approx(norms["packed"], rel=1e-4)


def test_each_part_learns_at_its_own_rate(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    rates = OptimizerConfig(
        learning_rate=1e-3, part_learning_rates={"projector": 1e-30}, warmup_ratio=0.0
    )
    config = dataclasses.replace(stage_2(tiny_parts, max_steps=2), optimizer=rates)
    torch.manual_seed(config.seed)
    before = assemble(config, None).model.state_dict()
    assert train(config, [conversation_dataset], str(tmp_path))
    after = load_file(tmp_path / "model" / "model.safetensors")
    is_same = {name: torch.equal(value, before[name]) for name, value in after.items()}
    assert all(same for name, same in is_same.items() if name.startswith("projector"))
    assert not is_same["gate.mlp.0.weight"]
    assert not is_same["language_model.model.layers.0.self_attn.q_proj.weight"]
    assert logged(tmp_path, "train/projector_learning_rate") == [1e-30, 0.5e-30]
    assert logged(tmp_path, "train/gate_learning_rate") == [1e-3, 0.5e-3]


def test_a_rate_for_a_part_that_does_not_learn_is_refused(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    rates = OptimizerConfig(part_learning_rates={"gate": 1e-3})
    config = dataclasses.replace(tiny_config(tiny_parts), optimizer=rates)
    with pytest.raises(ConfigError, match="names 'gate', of which nothing learns"):
        train(config, [caption_dataset], str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_resume_equals_no_interruption_under_any_zero_stage(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, zero_stage: Any
) -> None:
    config = stage_2(tiny_parts, save_every_steps=2, keep_checkpoints=9)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(config, [conversation_dataset], str(whole))
    go_back(whole, resumed, step=2)
    other = stage_2(
        tiny_parts,
        save_every_steps=2,
        parallel=ParallelConfig(zero_stage=zero_stage, precision="fp32"),
    )
    assert train(other, [conversation_dataset], str(resumed))
    for name in ("train/loss", "train/gradient_norm"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-5)
    assert logged(resumed, "train/samples") == logged(whole, "train/samples")
    assert min(logged(resumed, "memory/resident_bytes")) > 10**7


@pytest.mark.slow
def test_a_curriculum_of_levels_goes_on_where_it_stopped(
    tiny_parts: dict[str, str], caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    data = {"level_weights": (0.0, 1.0, 1.0, 2.0), "level_curriculum": "low_left_out"}
    config = tiny_config(tiny_parts, data=data, save_every_steps=1, keep_checkpoints=9)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(config, [caption_dataset], str(whole))
    assert "train/level_1_loss" not in all_names(whole)
    assert len(logged(whole, "train/level_4_loss")) > len(logged(whole, "train/level_2_loss")) > 0
    go_back(whole, resumed, step=1)
    with pytest.raises(ConfigError, match=r'level_curriculum was "low_left_out"'):
        train(tiny_config(tiny_parts, save_every_steps=1), [caption_dataset], str(resumed))
    assert train(config, [caption_dataset], str(resumed))
    for name in ("train/samples_checksum", "train/loss"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-5)
    with pytest.raises(ConfigError, match="no sample has an alignment level"):
        train(stage_2(tiny_parts, data=data), [conversation_dataset], str(tmp_path / "unlevelled"))


def go_back(run: Path, copy: Path, step: int) -> None:
    """Makes of a finished run one that was killed after the checkpoint at `step`."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    (copy / "finished.json").unlink()
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    (copy / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")


def test_a_run_of_another_configuration_is_refused_and_a_finished_one_left_alone(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    config = tiny_config(tiny_parts, max_steps=1)
    assert train(config, [caption_dataset], str(out))
    written = (out / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(config, [caption_dataset], str(out))
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == written
    (out / "finished.json").unlink()
    with pytest.raises(ConfigError, match="seed was 0 and is now 1"):
        train(tiny_config(tiny_parts, max_steps=1, seed=1), [caption_dataset], str(out))


def test_levels_beyond_the_models_are_refused(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_parts, model=ModelConfig(**tiny_parts, num_levels=3))
    with pytest.raises(ConfigError, match=r"levels up to 4, but the model has 3"):
        train(config, [caption_dataset], str(tmp_path / "run"))


def test_levels_beyond_the_models_are_refused_in_validation_data_too(
    tiny_parts: dict[str, str], caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    config = stage_2(
        tiny_parts,
        model=ModelConfig(**tiny_parts, num_levels=3),
        data={"validation_data": (caption_dataset,), "validation_ratio": 0.0},
    )
    with pytest.raises(ConfigError, match=r"levels up to 4, but the model has 3"):
        train(config, [conversation_dataset], str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_does_not_go_on_from_another_first_model(
    tiny_parts: dict[str, str], caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    one, two, resumed = tmp_path / "one", tmp_path / "two", tmp_path / "resumed"
    assert train(tiny_config(tiny_parts, max_steps=1), [caption_dataset], str(one))
    config = stage_2(tiny_parts, save_every_steps=1, keep_checkpoints=9, max_steps=2)
    assert train(config, [conversation_dataset], str(two), init=str(one / "model"))
    go_back(two, resumed, step=1)
    os.utime(one / "model" / "model.safetensors", ns=(0, 0))
    with pytest.raises(ConfigError, match=r"model has changed since .*step-00000001 was made"):
        train(config, [conversation_dataset], str(resumed), init=str(one / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_in_bf16_many_batches_give_the_gradient_of_one(
    zero_stage: Any, tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    """The same 48 samples in one pass of 48 rows, and in 48 passes of a row each."""
    parallel = ParallelConfig(zero_stage=zero_stage, precision="bf16")
    norms = {}
    for rows in (1, 48):
        out = tmp_path / str(rows)
        data = {"sequences_per_step": 48, "packing_window": 1, "sequences_per_device": rows}
        config = stage_2(tiny_parts, data=data, epochs=1, parallel=parallel)
        assert train(config, [conversation_dataset], str(out))
        norms[rows] = logged(out, "train/gradient_norm")
    assert norms[1] == pytest.approx(norms[48], rel=1e-2)


@pytest.mark.slow
def test_a_mixture_of_datasets_is_learnt_with_weights(
    tiny_parts: dict[str, str],
    conversation_dataset: str,
    other_conversation_dataset: str,
    tmp_path: Path,
) -> None:
    config = stage_2(tiny_parts, data={"weights": (1.0, 2.0), "validation_ratio": 0.0}, epochs=1)
    assert train(config, [conversation_dataset, other_conversation_dataset], str(tmp_path / "run"))
    assert sum(logged(tmp_path / "run", "train/samples")) == 48 + 2 * 16


def command_line(parts: dict[str, str], stage: str, data: str, out: Path) -> list[str]:
    """Returns the command that runs a tiny configuration in processes of their own."""
    words = [*COMMAND, stage, "--data", data, "--out", str(out), "--model.num-levels", "4"]
    words += ["--model.language-model", parts["language_model"], "--parallel.precision", "fp32"]
    words += ["--model.vision-tower", parts["vision_tower"], "--data.tokens-per-sequence", "128"]
    words += ["--data.sequences-per-step", "4", "--data.validation-ratio", "0.2"]
    words += ["--model.chat-template", "tokenizer", "--save-every-steps", "0"]
    return [*words, "--validate-every-steps", "0", "--data.workers", "1"]


@pytest.mark.slow
def test_two_processes_with_pictures_on_some_only_learn_what_one_does_under_zero_3(
    tiny_parts: dict[str, str], tmp_path: Path
) -> None:
    samples = conversation_samples(48)
    for number, sample in enumerate(samples):
        sample["caption"] += f" {number}"  # only where captions differ are pictures exchanged
    conversation_dataset = write_dataset(tmp_path / "data", samples)
    one, two = tmp_path / "one", tmp_path / "two"
    data = {"tokens_per_sequence": 128, "sequences_per_step": 4}
    config = stage_2(tiny_parts, data=data, save_every_steps=2, keep_checkpoints=9)
    assert train(config, [conversation_dataset], str(one))
    go_back(one, two, step=2)
    # The configuration lies in the folder; the flags below must say the same.
    words = command_line(tiny_parts, "pretrain", conversation_dataset, two)
    words += ["--parallel.zero-stage", "3", "--data.form", "conversation"]
    words += ["--train-parts", "projector", "gate", "language_model", "--epochs", "2"]
    words += ["--optimizer.learning-rate", "1e-3"]
    run_ranks(words, 2)
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-5)
    held_out = ("loss", "pictured_loss", "exchanged_loss")
    for name in (f"validation/{name}" for name in held_out):
        assert logged(one, name) and logged(two, name) == pytest.approx(logged(one, name), rel=1e-5)
    assert (two / "model" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_ends_with_143(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path, processes: int
) -> None:
    out = tmp_path / "run"
    words = command_line(tiny_parts, "pretrain", caption_dataset, out)
    words += ["--epochs", "500", "--processes", str(processes)]
    with subprocess.Popen(words, env=own_environment()) as run:
        give_up_at = time.monotonic() + 240
        while time.monotonic() < give_up_at and run.poll() is None:
            if (out / "metrics.jsonl").exists() and len(logged(out, "train/loss")) > 2:
                break
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=240) == 143
    step = int((out / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert step == len(logged(out, "train/loss"))
    assert not (out / "model").exists()


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_with_143(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [*command_line(tiny_parts, "pretrain", caption_dataset, out), "--epochs", "500"]
    with subprocess.Popen(words, env=own_environment(), stderr=subprocess.PIPE, text=True) as run:
        give_up_at = time.monotonic() + 240
        while not (out / ".lock").exists() and time.monotonic() < give_up_at:
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=240)
        assert run.returncode == 143
    assert "stopped by SIGTERM before the first step" in said
    assert not (out / "checkpoints").exists()
