"""The rules of the house that the type checker and the linter cannot hold."""

import ast
import importlib.util
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "scoring", "pipeline", "training")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "scoring": {"schemas", "scoring"},
    "pipeline": {"schemas", "scoring", "pipeline"},
    "training": {"schemas", "training"},
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = imported_packages(path) & set(PACKAGES)
    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_pipeline_knows_beam_and_only_training_knows_deepspeed(path):
    package = path.relative_to(ROOT).parts[0]
    imported = imported_packages(path)
    assert package == "pipeline" or "apache_beam" not in imported
    assert package == "training" or "deepspeed" not in imported


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_a_drawer_for_odds_and_ends(path):
    assert path.stem not in {"utils", "helpers", "common", "misc", "registry", "factory"}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_is_imported_is_ours(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).parent == ROOT / package


def test_the_distribution_offers_the_two_commands():
    commands = {entry.name for entry in distribution("aligngpt").entry_points}
    assert {"aligngpt-curate", "aligngpt-train"} <= commands
