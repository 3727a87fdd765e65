import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.ranks import run_ranks
from tests.training.test_train import command_line, go_back, logged, stage_2
from training.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from training.model.aligngpt import AlignGPTForConditionalGeneration
from training.parts import from_parts
from training.train import train


@pytest.mark.slow
def test_dropout_of_lora_is_the_same_on_two_processes_under_zero_3_as_on_one(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    changes = {"save_every_steps": 2, "keep_checkpoints": 9}
    config = replace(stage_2(tiny_parts, **changes), lora=LoraConfig(rank=4, dropout=0.3))
    assert train(config, [conversation_dataset], str(one))
    go_back(one, two, step=2)
    # The configuration lies in the folder; the flags below must say the same.
    words = command_line(tiny_parts, "pretrain", conversation_dataset, two)
    words += ["--parallel.zero-stage", "3", "--data.form", "conversation"]
    words += ["--train-parts", "projector", "gate", "language_model", "--epochs", "2"]
    words += ["--optimizer.learning-rate", "1e-3", "--lora.rank", "4", "--lora.dropout", "0.3"]
    run_ranks(words, 2)
    assert logged(two, "train/loss") == pytest.approx(logged(one, "train/loss"), rel=1e-5)
    assert logged(two, "validation/loss") == pytest.approx(logged(one, "validation/loss"), rel=1e-5)


@pytest.mark.slow
# DeepSpeed 0.19.8 calls what torch 2.14 has renamed.
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_stage_2_with_lora_learns_and_leaves_a_plain_model(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, zero_stage: int
) -> None:
    config = TrainConfig(
        told_samples=0,
        model=ModelConfig(**tiny_parts, num_levels=4),
        data=DataConfig(
            form="conversation",
            tokens_per_sequence=128,
            sequences_per_step=4,
            validation_ratio=0.2,
            workers=0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        parallel=ParallelConfig(zero_stage=zero_stage, precision="fp32"),
        lora=LoraConfig(rank=4, alpha=8.0),
        train_parts=("projector", "gate", "language_model"),
        epochs=3,
    )
    torch.manual_seed(0)
    start = from_parts(replace(config, lora=LoraConfig()))
    start.model.save_pretrained(tmp_path / "init")
    start.processor.save_pretrained(tmp_path / "init")
    before = load_file(tmp_path / "init" / "model.safetensors")
    out = tmp_path / "run"
    assert train(config, [conversation_dataset], str(out), str(tmp_path / "init"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert losses[-1] < losses[0]
    after = load_file(out / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in changed
    assert "language_model.model.embed_tokens.weight" not in changed
    saved = AlignGPTForConditionalGeneration.from_pretrained(out / "model")
    assert torch.equal(saved.state_dict()["projector.layers.0.weight"],
                       after["projector.layers.0.weight"])  # fmt: skip
