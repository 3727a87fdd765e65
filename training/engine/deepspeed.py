"""DeepSpeed's JSON, filled in from our configuration, and DeepSpeed started as it should be."""

import atexit
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from schemas.errors import ConfigError
from schemas.progress import at_work
from training.config import TrainConfig
from training.engine.launch import end_together, free_port
from training.engine.precision import arithmetic_of

LONGEST_WAIT = timedelta(hours=12)
"""For the first process, which tokenises and writes while the others wait; ten minutes, the usual
limit, are too few for 665,000 conversations."""


@contextmanager
def torchs_own_linear_after() -> Iterator[None]:
    """Gives torch its linear layer back at the end.

    ZeRO 3 replaces `torch.nn.functional.linear` for the whole process and for good, by one that
    does not hold gathered weights. It rounds otherwise, and keeps more for a backward pass: what
    runs in this process after training would not be what it is elsewhere.
    """
    import torch

    own = torch.nn.functional.linear
    try:
        yield
    finally:
        torch.nn.functional.linear = own


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
    accumulation = config.accumulation(processes)
    # In bf16 a sum over 64 batches is off by 3 %. ZeRO 1 would take another optimizer for it.
    is_bf16 = arithmetic_of(parallel).precision == "bf16"
    sums_in_fp32 = is_bf16 and parallel.zero_stage > 1 and accumulation > 1
    return {
        "train_micro_batch_size_per_gpu": config.data.sequences_per_device,
        "gradient_accumulation_steps": accumulation,
        "data_types": {"grad_accum_dtype": "fp32" if sums_in_fp32 else None},
        # Without ZeRO, build.py clips.
        "gradient_clipping": config.optimizer.max_gradient_norm if parallel.zero_stage else 0.0,
        "bf16": {"enabled": is_bf16},
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
    out: its shared-memory collectives alone compile for minutes and give gloo's sums. There, the
    process leaves the group when it ends.

    Raises:
        ConfigError: if there are more processes on this machine than GPUs.
        SystemExit: in all processes, if one was asked to stop.
    """
    import torch

    name_accelerator()
    with at_work("starting DeepSpeed"):
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
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise ConfigError(
                f"{os.environ.get('LOCAL_WORLD_SIZE')} processes on this machine, but torch sees "
                f"{gpus} GPUs: set --processes {gpus}"
            )
        torch.cuda.set_device(local_rank)
        deepspeed.init_distributed("nccl", timeout=LONGEST_WAIT)
    else:
        deepspeed.ops.__compatible_ops__ = {}
        deepspeed.init_distributed("gloo", timeout=LONGEST_WAIT)
        atexit.register(_leave_group)
    end_together(signal.getsignal(signal.SIGTERM))


def _leave_group() -> None:
    """Ends gloo's threads: at work after the interpreter's end, they would end it by SIGABRT."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
