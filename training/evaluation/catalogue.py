"""The benchmarks that there are: every module in benchmarks/ holds one."""

import pkgutil
from functools import cache
from importlib import import_module

import training.evaluation.benchmarks as folder
from schemas.errors import ConfigError
from training.evaluation.protocol import Benchmark

PAPER_ORDER = (
    "vqav2",
    "gqa",
    "vizwiz",
    "scienceqa",
    "textvqa",
    "pope",
    "mme",
    "mmbench",
    "mmbench_cn",
    "seed",
    "llavabench",
    "mmvet",
)
"""Columns of the paper's table; others follow in the order of their names."""


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Returns every benchmark by its name, in the order of the paper's table."""
    modules = [
        import_module(f"{folder.__name__}.{module.name}")
        for module in pkgutil.iter_modules(folder.__path__)
    ]
    found: dict[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in modules}
    names = [name for name in PAPER_ORDER if name in found]
    return {name: found[name] for name in [*names, *sorted(set(found) - set(names))]}


def benchmark(name: str) -> Benchmark:
    """Returns the benchmark of a name, however it is spelt.

    Raises:
        ConfigError: if there is none.
    """
    wanted = _bare(name)
    for candidate in benchmarks().values():
        if wanted in {_bare(known) for known in (candidate.name, *candidate.aliases)}:
            return candidate
    raise ConfigError(f"no benchmark {name!r}: use one of {', '.join(benchmarks())}")


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
