"""The arithmetic of a configuration, and of this machine."""

import pytest
import torch

from schemas.arithmetic import fast_arithmetic
from training.config import ParallelConfig
from training.engine.precision import (
    arithmetic_here,
    arithmetic_of,
    device_here,
    dtype_here,
    dtype_of,
)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_is_asked_for_is_what_is_computed_in(name, dtype):
    parallel = ParallelConfig(precision=name)
    assert dtype_of(parallel) is dtype
    assert (arithmetic_of(parallel).precision, arithmetic_of(parallel).reason) == (
        name,
        "as asked for",
    )


def test_without_zero_auto_keeps_fp32_weights():
    found = arithmetic_of(ParallelConfig(zero_stage=0))
    assert found.precision == "fp32" and "without ZeRO" in found.reason


def test_auto_is_what_this_machine_is_fast_in():
    assert device_here() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert arithmetic_of(ParallelConfig()) == arithmetic_here() == fast_arithmetic(device_here())
    assert dtype_of(ParallelConfig()) is dtype_here()
