from training.config import DataConfig, OptimizerConfig, ParallelConfig, TrainConfig
from training.engine.deepspeed import deepspeed_config


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
