import re

import pytest

from schemas.errors import ConfigError
from training.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)


def test_the_sequences_of_a_step_must_be_dealt_out_evenly() -> None:
    config = TrainConfig(data=DataConfig(sequences_per_step=12, sequences_per_device=2))
    assert config.accumulation(3) == 2
    with pytest.raises(ConfigError, match=r"multiple of processes .* = 4 x 2, got 12"):
        config.accumulation(4)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (DataConfig, "workers", -1),
        (DataConfig, "weights", (1.0, float("inf"))),
        (LoraConfig, "alpha", float("nan")),
        (ModelConfig, "image_scales", (0,)),
        (ModelConfig, "projector_spread", float("nan")),
        (OptimizerConfig, "learning_rate", float("inf")),
        (OptimizerConfig, "beta2", 1.0),
        (OptimizerConfig, "epsilon", -1e-8),
        (OptimizerConfig, "max_gradient_norm", float("nan")),
        (TrainConfig, "seed", 2**64),
        (TrainConfig, "save_every_steps", -1),
        (TrainConfig, "validate_every_steps", -1),
        (TrainConfig, "keep_checkpoint_every_hours", -0.5),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_by_its_name(
    part: type, name: str, value: float | tuple[float, ...]
) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .*, got {re.escape(str(value))}"):
        part(**{name: value})


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bf16 needs parallel\.zero_stage 1"):
        ParallelConfig(zero_stage=0, precision="bf16")
    with pytest.raises(ConfigError, match=r"train_parts: 'gate\(' is no regular expression"):
        TrainConfig(train_parts=("projector", "gate("))
    with pytest.raises(ConfigError, match="offload all needs"):
        ParallelConfig(zero_stage=2, offload="all")
    with pytest.raises(ConfigError, match=r"data\.weights must be numbers from 0 on"):
        DataConfig(weights=(1.0, -1.0))
    with pytest.raises(ConfigError, match=r"one number for each of model\.num_levels = 8 levels"):
        TrainConfig(data=DataConfig(level_weights=(1.0, 2.0)))
    with pytest.raises(ConfigError, match="level_weights must be numbers from 0 on"):
        DataConfig(level_weights=(1.0, float("nan")))
    with pytest.raises(ConfigError, match=r"part_learning_rates must be positive, got gate 0\.0"):
        OptimizerConfig(part_learning_rates={"gate": 0.0})
    with pytest.raises(ConfigError, match=r"part_learning_rates must be positive, got gate nan"):
        OptimizerConfig(part_learning_rates={"gate": float("nan")})
