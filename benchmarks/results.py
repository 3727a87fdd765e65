"""What benchmarks found, as files that say on which machine and with which versions."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.versions import installed_versions

FOLDER = Path(__file__).parent / "results"

PACKAGES = (
    *("aligngpt", "aiohttp", "apache-beam", "img2dataset", "numpy", "opencv-python-headless"),
    *("open_clip_torch", "pillow", "simplejpeg", "timm", "torch", "transformers"),
)
"""Libraries whose versions can show in the figures."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as a benchmark prints it and as a page of the docs shows it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        """Returns it in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def add_save_option(parser: argparse.ArgumentParser, name: str) -> None:
    """Lets a command line ask for the table to be stored, under this name or one that it gives."""
    parser.add_argument(
        "--save",
        nargs="?",
        const=name,
        metavar="NAME",
        help=f"store the table in benchmarks/results/NAME.json, by default {name}.json",
    )


def show_table(table: Table, save: str | None, **sizes: int | float | str) -> None:
    """Prints a table, and stores it if it was asked for.

    Args:
        sizes: what was measured, and how much of it.
    """
    print(f"\n{table}")
    if save:
        stored = {"columns": list(table.columns), "rows": [list(row) for row in table.rows]}
        print(save_result(save, {**sizes, "table": stored}))


def save_result(name: str, figures: dict[str, Any]) -> Path:
    """Returns the file that the figures of a benchmark are in now, with what they were made on."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    values = {"machine": machine(), "versions": installed_versions(PACKAGES), "figures": figures}
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path


def read_result(name: str) -> dict[str, Any]:
    """Returns what is stored of a benchmark."""
    values: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return values


def machine() -> dict[str, Any]:
    """Returns what kind of machine this is, and how busy others keep it."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "load_of_the_last_minute": round(os.getloadavg()[0], 1),
    }


def processor() -> str:
    """Returns the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
