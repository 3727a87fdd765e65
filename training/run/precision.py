"""The precision of a run: chosen when it begins, kept where it goes on, and said."""

import json
from dataclasses import replace

import torch.distributed as dist

from schemas.arithmetic import Arithmetic, emulation_warning
from schemas.terminal import Console
from training.engine.precision import arithmetic_of, device_here
from training.run.folder import RunFolder


def with_settled_precision(folder: RunFolder) -> RunFolder:
    """Returns the run's folder, `auto` replaced by what all processes compute in.

    It is what the run in the folder began with, so that its losses do not change where it goes on
    elsewhere; in a new run what the first process's machine is fast in. All processes call this
    together.
    """
    settled: list[Arithmetic | None] = [None]
    if dist.get_rank() == 0:
        chosen = _begun_with(folder) or arithmetic_of(folder.config.parallel)
        _say(chosen)
        settled = [chosen]
    dist.broadcast_object_list(settled, src=0)
    arithmetic = settled[0]
    assert arithmetic is not None
    config = folder.config
    parallel = replace(config.parallel, precision=arithmetic.precision)
    return replace(
        folder, config=replace(config, parallel=parallel), precision_reason=arithmetic.reason
    )


def _begun_with(folder: RunFolder) -> Arithmetic | None:
    """Returns what the run in the folder computes in; None if it has learnt nothing yet."""
    path = folder.out / "config.json"
    if (
        folder.config.parallel.precision != "auto"
        or not folder.holds_weights()
        or not path.exists()
    ):
        return None
    found = json.loads(path.read_text())
    why = found.get("precision_reason", "").removeprefix("as this run began: ")
    reason = f"as this run began: {why}" if why else "as this run began"
    return Arithmetic(found["config"]["parallel"]["precision"], reason)


def _say(arithmetic: Arithmetic) -> None:
    console = Console(stderr=True)
    console.print(
        f"parallel.precision {arithmetic.precision}: {arithmetic.reason}",
        highlight=False,
        markup=False,
    )
    warning = emulation_warning(
        "parallel.precision", arithmetic.precision, device_here(), learns=True
    )
    if warning is not None:
        console.print(warning, style="yellow", highlight=False, markup=False)
