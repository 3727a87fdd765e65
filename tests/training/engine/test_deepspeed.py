import os
import subprocess
import sys

import pytest

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


ENDS_EARLY = """
import torch
import torch.distributed as dist
from training.engine.deepspeed import start_distributed

start_distributed()
start_distributed()
mine, gathered = torch.ones(10_000_000), [torch.empty(10_000_000)]
for _ in range(200):
    dist.all_gather(gathered, mine[:], async_op=True)
print("ends")
"""


@pytest.mark.slow
def test_a_process_ends_well_while_gloo_still_holds_its_tensors() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "-c", ENDS_EARLY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr
    assert "Traceback" not in done.stderr
