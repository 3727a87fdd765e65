"""Checkpoints that know nothing of how many processes wrote them, nor under which ZeRO stage.

A checkpoint holds, whole and in fp32, every weight that learns and its two Adam moments, and the
step. The rest of a run follows from the step alone: the plan's position, the learning rate, and
the random numbers, which are drawn from (seed, step). Weights that do not learn come from where
they came from at the start.

    OUT/checkpoints/step-00000100/state-00000.safetensors   one file from each process
    OUT/checkpoints/step-00000100/run.json                  step, configuration
    OUT/checkpoints/latest                                  name of the newest, written last

A checkpoint is written aside and renamed, so whatever bears its name is whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.errors import DatasetError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    config: dict[str, Any]
    """The resolved configuration."""
    plan_fingerprint: str
    """Of the data and all that decides the plan."""


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint below `folder`, or None."""
    pointer = folder / "latest"
    if not pointer.exists():
        return None
    found = folder / pointer.read_text().strip()
    if not (found / "run.json").exists():
        raise DatasetError(f"{pointer} names {found.name}, which is not there or not whole")
    return found


def read_state(checkpoint: Path) -> RunState:
    """Returns where the run stood when the checkpoint was written."""
    return RunState(**json.loads((checkpoint / "run.json").read_text()))


def save_checkpoint(engine: Any, folder: Path, state: RunState, keep: int) -> Path:
    """Returns the new checkpoint; all processes must call this together.

    Args:
        engine: DeepSpeed's.
        keep: how many of the newest stay.
    """
    import torch.distributed as dist

    name = f"step-{state.step:08d}"
    aside, target = folder / f".{name}.tmp", folder / name
    rank, processes = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    _link_moments(engine)
    mine: dict[str, Tensor] = {}
    for number, (parameter_name, parameter) in enumerate(learning_parameters(engine.module)):
        values = _full_state(engine, parameter)
        if number % processes == rank:
            for part, value in values.items():
                mine[f"{parameter_name}:{part}"] = value.detach().float().cpu().contiguous()
    save_file(mine, aside / f"state-{rank:05d}.safetensors")
    dist.barrier()
    if rank == 0:
        _commit(aside, target, state, folder, keep)
    dist.barrier()
    return target


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Sets the model's learning weights; call it before DeepSpeed takes the model."""
    parameters = dict(learning_parameters(model))
    found = set()
    with torch.no_grad():
        for name, part, value in _stored(checkpoint):
            if part == "weight":
                parameters[name].copy_(value.to(parameters[name].dtype))
                found.add(name)
    if missing := parameters.keys() - found:
        raise DatasetError(f"{checkpoint} lacks {', '.join(sorted(missing)[:5])}")


def load_optimizer(engine: Any, checkpoint: Path, step: int) -> None:
    """Sets the fp32 weights and Adam's moments in DeepSpeed's engine, however it splits them."""
    _create_moments(engine, step)
    parameters = dict(learning_parameters(engine.module))
    for name, part, value in _stored(checkpoint):
        _set_state(engine, parameters[name], part, value)


def learning_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that learn, in the model's order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _commit(aside: Path, target: Path, state: RunState, folder: Path, keep: int) -> None:
    values = {
        "step": state.step,
        "config": state.config,
        "plan_fingerprint": state.plan_fingerprint,
    }
    (aside / "run.json").write_text(json.dumps(values, indent=2) + "\n")
    for file in aside.iterdir():
        _sync(file)
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    pointer = folder / ".latest.tmp"
    pointer.write_text(target.name + "\n")
    _sync(pointer)
    pointer.replace(folder / "latest")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        if old != target:
            shutil.rmtree(old)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _stored(checkpoint: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Yields (parameter, "weight" or moment, value) of a checkpoint, one in memory at a time."""
    for path in sorted(checkpoint.glob("state-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is no dict)
                name, _, part = key.rpartition(":")
                yield name, part, file.get_tensor(key)


def _full_state(engine: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Returns a parameter's fp32 weight and moments, gathered from all processes."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    weight = safe_get_full_fp32_param(parameter)
    if weight is None:
        state = engine.basic_optimizer.state[parameter]
        return {"weight": parameter, **{moment: state[moment] for moment in MOMENTS}}
    moments = {moment: safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
    return {"weight": weight, **moments}


def _set_state(engine: Any, parameter: nn.Parameter, part: str, value: Tensor) -> None:
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    is_weight = part == "weight"
    if hasattr(parameter, "ds_id"):
        mine = _partition(parameter, value)
        if is_weight:
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, part)
    elif hasattr(parameter, "_hp_mapping"):
        if is_weight:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, part)
    elif not is_weight:
        engine.basic_optimizer.state[parameter][part].copy_(value)


def _partition(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Returns this process's equal share of a value, zeros behind its end (ZeRO-3)."""
    import torch.distributed as dist

    size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    whole = torch.zeros(size * dist.get_world_size(), dtype=value.dtype)
    whole[: value.numel()] = value.flatten()
    return whole.narrow(0, size * dist.get_rank(), size)


def _create_moments(engine: Any, step: int) -> None:
    """Gives AdamW the moments that it would make at its first step, so that they can be set."""
    optimizer = engine.basic_optimizer
    flat = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    tensors = flat or [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for tensor in tensors:
        optimizer.state[tensor] = {
            "step": torch.tensor(float(step)),
            **{moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS},
        }
    _link_moments(engine)


def _link_moments(engine: Any) -> None:
    """Lets DeepSpeed find the moments of all groups of parameters (ZeRO 1 and 2).

    Left alone, it links them when the first group has been stepped for the first time, and the
    others never (0.19.8).
    """
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        engine.optimizer._hp_optimizer_states_linked = False
        link()
