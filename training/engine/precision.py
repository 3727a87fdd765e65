"""The arithmetic that a model computes in: what was asked for, or what this machine is fast in."""

from typing import Literal

import torch

from schemas.arithmetic import Arithmetic, FastPrecision, fast_arithmetic
from training.config import ParallelConfig

DTYPES: dict[FastPrecision, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def device_here() -> Literal["cpu", "cuda"]:
    """Returns where models run on this machine: on a GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def arithmetic_here() -> Arithmetic:
    """Returns what this machine's GPU, or without one its processor, is fast in, and why."""
    return fast_arithmetic(device_here())


def dtype_here() -> torch.dtype:
    """Returns the type of the weights that this machine computes fast with."""
    return DTYPES[arithmetic_here().precision]


def arithmetic_of(parallel: ParallelConfig) -> Arithmetic:
    """Returns the precision that a configuration trains in, `auto` decided for this machine."""
    if parallel.precision != "auto":
        return Arithmetic(parallel.precision, "as asked for")
    if parallel.zero_stage == 0:
        return Arithmetic("fp32", "without ZeRO, bf16 has no fp32 copy of the weights")
    return arithmetic_here()


def dtype_of(parallel: ParallelConfig) -> torch.dtype:
    """Returns the type of the weights in the forward and backward pass."""
    return DTYPES[arithmetic_of(parallel).precision]
