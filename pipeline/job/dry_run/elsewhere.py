"""Whether what a graph holds can be unpickled on another machine, tried in another process.

The process starts in the root folder with nothing of this one but its interpreter: no main module,
no working folder on Python's path and no PYTHONPATH of the user's. What it imports must come from
an installed package, since on a worker there is nothing else.
"""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pipeline
from pipeline.job.dry_run.pickles import Pickled, pickles_of

OWN_ROOT = str(Path(pipeline.__file__).parent.parent)
"""Where our own packages are, which need not be installed where they are worked on."""

PACKAGES = ("pipeline", "scoring", "schemas")


def faults_elsewhere(proto: Any, functions: Sequence[str] = ()) -> list[str]:
    """Returns what a process of its own could not unpickle or import, and why.

    Args:
        functions: that the configuration names, as MODULE:FUNCTION.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not OWN_ROOT.startswith((sys.prefix, sys.base_prefix)):
        # An installed package is found anyway; named first, its folder would hide Python's own.
        environment["PYTHONPATH"] = OWN_ROOT
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *functions],
        input=proto.SerializeToString(),
        capture_output=True,
        cwd="/",
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return [f"a worker would not start (exit status {done.returncode}): {said[-1:]}"]
    faults: list[str] = json.loads(done.stdout.splitlines()[-1])
    return faults


def try_here(graph: bytes, functions: Sequence[str]) -> list[str]:
    """Returns what this process could not unpickle or import, and why; meant for a fresh one."""
    from apache_beam.portability.api import beam_runner_api_pb2

    proto = beam_runner_api_pb2.Pipeline.FromString(graph)
    faults = []
    for one in pickles_of(proto):
        faults += _fault(f"step {one.owner!r}", partial(_unpickle, one))
    for function in functions:
        faults += _fault(f"function {function!r}", partial(_import, function))
    return faults + _strange_modules()


def _fault(what: str, act: Callable[[], object]) -> list[str]:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - whatever a foreign module raises is told
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return [f"{what} cannot be loaded on a worker ({why}): install what it needs there"]
    return []


def _unpickle(pickled: Pickled) -> object:
    from apache_beam.internal.cloudpickle import cloudpickle

    loaded: object = cloudpickle.loads(pickled.plain)
    return loaded


def _import(function: str) -> object:
    module, _, name = function.partition(":")
    found: object = getattr(importlib.import_module(module), name)
    return found


def _strange_modules() -> list[str]:
    """Returns what was imported from elsewhere than installed packages and our own."""
    installed = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values()}
    installed |= {f"{OWN_ROOT}/{name}" for name in PACKAGES}
    roots = tuple(os.path.join(root, "") for root in installed)  # noqa: PTH118
    strange = {
        name: file
        for name, module in sorted(sys.modules.items())
        if name != "__main__" and (file := getattr(module, "__file__", None))
        if file.startswith("/") and not file.startswith(roots)
    }
    return [
        f"module {name} is no installed package ({file}): workers do not have it. Install it in "
        "their image"
        for name, file in strange.items()
    ]


if __name__ == "__main__":
    print(json.dumps(try_here(sys.stdin.buffer.read(), sys.argv[1:])))  # noqa: T201
