"""Checkpoints that know nothing of how many processes wrote them, nor under which ZeRO stage.

A checkpoint holds, whole and in fp32, every weight that learns and its two Adam moments, and the
step. The rest of a run follows from the step alone: the plan's position, the learning rate, and
the random numbers, which are drawn from (seed, step). Weights that do not learn come from where
they came from at the start.

    OUT/checkpoints/step-00000100/state-00000-00000.safetensors  of each process, about 2 GB a file
    OUT/checkpoints/step-00000100/run.json                       step, configuration
    OUT/checkpoints/latest                                       name of the newest, written last

A checkpoint is written aside and renamed, and renamed before it is removed, so whatever bears its
name is whole.
"""

import dataclasses
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.errors import DatasetError, StorageError
from training.engine.watch import undisturbed

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = re.compile(r"step-\d{8}")
ASIDE = re.compile(r"\.step-\d{8}\.(tmp|old)")
"""Names of a checkpoint while it is written, and while it is removed."""
FILE_BYTES = 2 * 10**9
"""After so many a process begins its next file: it holds no more than that in main memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run stands."""

    step: int
    """Optimizer steps done."""
    config: dict[str, Any]
    """The resolved configuration."""
    plan_fingerprint: str
    """Of the data and all that decides the plan."""
    init: tuple[tuple[Any, ...], ...] = ()
    """Files of the model folder that the run started from, whose frozen weights are not in here:
    name, size, time. Empty without one, and in checkpoints from before this was noted."""


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
    values = json.loads((checkpoint / "run.json").read_text())
    values["init"] = tuple(tuple(file) for file in values.get("init", ()))
    return RunState(**values)


def save_checkpoint(
    engine: Any, folder: Path, state: RunState, keep: int, every_hours: float = 0.0
) -> Path:
    """Returns the new checkpoint; all processes must call this together.

    Args:
        engine: DeepSpeed's.
        keep: how many of the newest stay.
        every_hours: of older ones, one stays for so many hours; 0 for none.

    Raises:
        StorageError: in all processes, if one could not write; the checkpoint before stays.
    """
    import torch.distributed as dist

    name = f"step-{state.step:08d}"
    aside, target = folder / f".{name}.tmp", folder / name
    rank, processes = dist.get_rank(), dist.get_world_size()
    with _together(folder):
        if rank == 0:
            _remove_unfinished(folder)
            aside.mkdir(parents=True)
    _link_moments(engine)
    mine = _Share(aside, rank)
    for number, (parameter_name, parameter) in enumerate(learning_parameters(engine.module)):
        values = _full_state(engine, parameter)
        if number % processes == rank:
            for part, value in values.items():
                mine.add(f"{parameter_name}:{part}", value)
    with _together(folder):
        mine.finish()
    with _together(folder):
        if rank == 0:
            with undisturbed():
                _commit(aside, target, state, folder)
            for old in superseded(own_checkpoints(folder, state), keep, every_hours):
                if old != target:
                    _remove(old)
    return target


class _Share:
    """Writes what one process keeps of a checkpoint, file after file."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._waiting: dict[str, Tensor] = {}
        self._num_files = 0
        self._failure: OSError | SafetensorError | None = None

    def add(self, name: str, value: Tensor) -> None:
        """Takes a value; a failure waits for `finish`, as the others still gather with us."""
        self._waiting[name] = value.detach().float().cpu().contiguous()
        if sum(tensor.nbytes for tensor in self._waiting.values()) >= FILE_BYTES:
            self._write()

    def finish(self) -> None:
        """Writes the last file.

        Raises:
            OSError, SafetensorError: if this or an earlier one could not be written.
        """
        self._write()
        if self._failure is not None:
            raise self._failure

    def _write(self) -> None:
        path = self._folder / f"state-{self._rank:05d}-{self._num_files:05d}.safetensors"
        try:
            if self._waiting and self._failure is None:
                save_file(self._waiting, path)
        except (OSError, SafetensorError) as error:
            self._failure = error
        self._num_files += 1
        self._waiting = {}


@contextmanager
def _together(folder: Path) -> Iterator[None]:
    """Ends once all processes are through; what one could not write, all of them raise."""
    import torch.distributed as dist

    failure: str | None = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        failure = str(error)
    failures: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    if any(failures):
        if dist.get_rank() == 0:
            _remove_unfinished(folder)
        said = next(text for text in failures if text)
        raise StorageError(
            f"no checkpoint could be written below {folder} ({said}); the one before stays. Make "
            "room, or choose another disk, and run the same command again"
        )


def own_checkpoints(folder: Path, state: RunState) -> list[Path]:
    """Returns the checkpoints that this run wrote, oldest first; those of others are none."""
    found = [path for path in sorted(folder.glob("step-*")) if STEP.fullmatch(path.name)]
    return [path for path in found if _is_own(path, state)]


def _is_own(path: Path, state: RunState) -> bool:
    try:
        values = json.loads((path / "run.json").read_text())
        return bool(values["plan_fingerprint"] == state.plan_fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def superseded(checkpoints: Sequence[Path], keep: int, every_hours: float) -> list[Path]:
    """Returns which of the checkpoints, oldest first, need not be kept."""
    found = []
    kept_at = -math.inf
    for old in checkpoints[:-keep]:
        written_at = old.stat().st_mtime
        if every_hours and written_at - kept_at >= every_hours * 3600.0:
            kept_at = written_at
        else:
            found.append(old)
    return found


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint, which first loses its name: so what bears one is whole."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    checkpoint.replace(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_unfinished(folder: Path) -> None:
    """Removes what runs that were killed, or that found no room, left half written or removed."""
    for aside in folder.glob(".step-*"):
        if ASIDE.fullmatch(aside.name):
            shutil.rmtree(aside, ignore_errors=True)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Sets the model's learning weights; call it before DeepSpeed takes the model."""
    parameters = dict(learning_parameters(model))
    found = set()
    with torch.no_grad():
        for name, _, value in _stored(checkpoint, ("weight",)):
            parameters[name].copy_(value.to(parameters[name].dtype))
            found.add(name)
    if missing := parameters.keys() - found:
        raise DatasetError(f"{checkpoint} lacks {', '.join(sorted(missing)[:5])}")


def load_optimizer(engine: Any, checkpoint: Path, step: int) -> None:
    """Sets the fp32 weights and Adam's moments in DeepSpeed's engine, however it splits them."""
    _create_moments(engine, step)
    parameters = dict(learning_parameters(engine.module))
    for name, part, value in _stored(checkpoint, ("weight", *MOMENTS)):
        _set_state(engine, parameters[name], part, value)


def learning_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters that learn, in the model's order."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _commit(aside: Path, target: Path, state: RunState, folder: Path) -> None:
    values = json.dumps(dataclasses.asdict(state), indent=2)
    (aside / "run.json").write_text(values + "\n")
    for path in (*aside.iterdir(), aside):
        _sync(path)
    if target.exists():
        if not _is_own(target, state):
            raise FileExistsError(f"{target} stands there, and this run did not write it")
        _remove(target)
    aside.replace(target)
    _sync(folder)  # so that after a loss of power no pointer stands without what it names
    pointer = folder / ".latest.tmp"
    pointer.write_text(target.name + "\n")
    _sync(pointer)
    pointer.replace(folder / "latest")
    _sync(folder)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network storage does this for files only.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _stored(checkpoint: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, str, Tensor]]:
    """Yields (parameter, "weight" or moment, value) of a checkpoint, one in memory at a time."""
    for path in sorted(checkpoint.glob("state-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (safe_open is no dict)
                name, _, part = key.rpartition(":")
                if part in wanted:
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
    is_fused = bool(optimizer.defaults.get("fused"))
    for tensor in tensors:
        # As AdamW has it itself: the fused kernel wants its counter beside the weights.
        optimizer.state[tensor] = {
            "step": torch.tensor(float(step), device=tensor.device if is_fused else "cpu"),
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
