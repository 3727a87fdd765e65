"""The documentation can be built as a site, and what it names is there."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pipeline.commands import COMMANDS as CURATE_COMMANDS
from pipeline.config import CurationConfig
from pipeline.recipes import RECIPES as CURATION_RECIPES
from training.cli import COMMANDS as TRAIN_COMMANDS
from training.config import TrainConfig
from training.recipes import FINETUNE_RECIPES, PRETRAIN_RECIPES

ROOT = Path(__file__).parent.parent
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
}
FOLDERS = "schemas|scoring|pipeline|training|tests|benchmarks|experiments|examples|docs"
FILLED = {"benchmarks/results"}
"""Folders that are not there before a command fills them: `make bench`."""
RECIPES = {*CURATION_RECIPES, *PRETRAIN_RECIPES, *FINETUNE_RECIPES}


def code_of(page: str) -> str:
    """What a page sets in the type of code."""
    text = PAGES[page]
    blocks = re.findall(r"```.*?```", text, re.DOTALL)
    return "\n".join(
        [*blocks, *re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    )


def settings_of(config: type[Any], prefix: str = "") -> Iterator[str]:
    """The flags of a configuration, as `--part.name`, also those that switch one off."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{prefix}{name}.")
        else:
            yield from (f"--{prefix}{name}", f"--{prefix}no-{name}")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    named = re.findall(rf"(?<![\w/.])((?:{FOLDERS})/[\w./-]*\w)", PAGES[page])
    absent = [path for path in named if not (ROOT / path).exists()]
    assert [path for path in absent if path not in FILLED] == []
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"(?<![\w/])test_\w+\.py", PAGES[page])) <= tests


def source_of(script: str) -> str:
    """The text of a script as `python -m` or `python` names it, and of ours that it imports."""
    path = ROOT / (script if script.endswith(".py") else f"{script.replace('.', '/')}.py")
    text = path.read_text(encoding="utf-8")
    imported = re.findall(r"^from ((?:benchmarks|experiments|examples)[\w.]*) import", text, re.M)
    beside = (ROOT / f"{name.replace('.', '/')}.py" for name in imported)
    return "\n".join([text, *(one.read_text(encoding="utf-8") for one in beside if one.exists())])


@pytest.mark.parametrize("page", PAGES)
def test_every_script_that_a_page_runs_takes_the_options_that_it_gives(page: str) -> None:
    script_of = r"python3? (?:-m )?((?:benchmarks|experiments|examples)[./][\w./]*\w)"
    commands = re.findall(script_of + r"((?:[^\n`|#\\]|\\\n)*)", PAGES[page])
    for script, words in commands:
        source = source_of(script)
        for option in re.findall(r"(?<!\S)--([a-z][\w-]*)", words):
            assert option in source or option.replace("-", "_") in source, f"{script} --{option}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_recipe_and_setting_that_a_page_names_exists(page: str) -> None:
    code = code_of(page)
    curate, train = (re.findall(rf"aligngpt-{name} ([a-z]+)", code) for name in ("curate", "train"))
    assert set(curate) <= CURATE_COMMANDS.keys()
    assert set(train) <= TRAIN_COMMANDS.keys()
    assert set(re.findall(r"(?:--recipe |RECIPE=)([a-z0-9_]+)", code)) <= RECIPES
    commands = (*CURATE_COMMANDS.values(), *TRAIN_COMMANDS.values())
    known = {
        name for part in (CurationConfig, TrainConfig, *commands) for name in settings_of(part)
    }
    assert set(re.findall(r"--[a-z-]+\.[a-z0-9.-]*[a-z0-9]", code)) <= known


def tables_of(section: str) -> Iterator[list[str]]:
    """The cells of each table of a section, without its header and its first column."""
    for rows in re.findall(r"^\|[-: |]+\|\n((?:\|.*\n)+)", section + "\n", re.M):
        cells = [cell.strip(" *") for row in rows.splitlines() for cell in row.split("|")[2:]]
        yield [cell for cell in cells if cell]


@pytest.mark.parametrize("page", PAGES)
def test_tables_of_figures_are_made_by_a_script_or_say_which_one_prints_them(page: str) -> None:
    text = PAGES[page]
    head, *sections = re.split(r"^(?=##+ )", text, flags=re.M)
    named = r"(?:benchmarks|experiments)[/.]\w|aligngpt-(?:curate|train) [a-z]"
    if re.search(rf"--write-docs|Written by `(?:{named})", text):  # all of it, by one script
        return
    for section in (head, *sections):
        for cells in tables_of(section):
            figures = [cell for cell in cells if re.match(r"[-+]?\d", cell)]
            if len(cells) > 2 and len(figures) * 2 >= len(cells):
                assert re.search(named, section), f"{section.splitlines()[0]}: {cells[:4]}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_a_page_for_every_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    modules = [
        path.relative_to(ROOT).with_suffix("")
        for package in ("schemas", "scoring", "pipeline", "training")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert [name for name in modules if not (tmp_path / "api" / name / "index.html").exists()] == []
    assert "RejectReason" in (tmp_path / "api" / "schemas" / "errors" / "index.html").read_text()
