"""DeepSpeed's JSON, filled in from our configuration, and DeepSpeed started as it should be."""

import os
import warnings
from typing import Any

from training.config import TrainConfig
from training.launch import free_port


def deepspeed_config(config: TrainConfig, processes: int, has_gpu: bool) -> dict[str, Any]:
    """Returns DeepSpeed's configuration; the optimizer's groups are given to it separately.

    Args:
        processes: how many run at once, over all machines.
    """
    parallel = config.parallel
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": has_gpu,
    }
    if parallel.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": has_gpu}
    if parallel.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": has_gpu}
    return {
        "train_micro_batch_size_per_gpu": config.data.sequences_per_device,
        "gradient_accumulation_steps": config.accumulation(processes),
        "gradient_clipping": config.optimizer.max_gradient_norm,
        "bf16": {"enabled": parallel.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def name_accelerator() -> None:
    """Tells DeepSpeed that there is no GPU where there is none, else it warns that it guesses.

    Transformers imports DeepSpeed when it saves a model, so this comes before either.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start_distributed() -> None:
    """Joins this process to the others; alone, it becomes a group of one.

    A launcher (torchrun, deepspeed) sets RANK and the rest; without one they are set here. On a
    CPU, DeepSpeed is told that none of its compiled operators are there, and does not try them
    out: its shared-memory collectives alone compile for minutes and give gloo's sums.
    """
    import torch

    name_accelerator()
    import deepspeed

    # DeepSpeed 0.19.8 calls torch's collectives by names that torch 2.14 renames.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", module="torch.distributed.*")
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            LOCAL_WORLD_SIZE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed("nccl")
        return
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("gloo")
