"""The rules of the house that the type checker and the linter cannot hold."""

import ast
import functools
import importlib.util
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def loaded(script: Path) -> Any:
    """Returns a script of ours as a module, whatever else is called as its folder is."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


import_graph = loaded(ROOT / "docs" / "import_graph.py")
PACKAGES = ("schemas", "scoring", "pipeline", "training")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "scoring": {"schemas", "scoring"},
    "pipeline": {"schemas", "scoring", "pipeline"},
    "training": {"schemas", "training"},
}
STAGES = import_graph.stages_of(path.name for path in (ROOT / "pipeline").iterdir())
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(
    path
    for folder in ("benchmarks", "docs", "examples", "experiments", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


@functools.cache
def imported_modules(path: Path) -> frozenset[str]:
    """Returns the modules that a file imports, anywhere in it, and the names taken from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


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
def test_only_the_graph_its_steps_and_the_job_know_beam(path):
    if "apache_beam" in imported_packages(path):
        parts = path.relative_to(ROOT / "pipeline").parts
        assert path.name == "transform.py" or parts == ("curate.py",) or parts[0] == "job"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_stage_imports_another(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "pipeline" and parts[1] in STAGES:
        named = (name.split(".") for name in imported_modules(path))
        others = {name[1] for name in named if name[0] == "pipeline" and len(name) > 1}
        assert others & STAGES <= {parts[1]}


@pytest.mark.parametrize("folder", import_graph.FOLDERS)
def test_imports_lead_down_and_never_round(folder):
    counts = import_graph.counts_of(folder)
    assert counts.rooms > 1
    assert (counts.back_up, counts.circles, counts.stage_to_stage) == (0, 0, 0)


@pytest.mark.parametrize("folder", import_graph.FOLDERS)
def test_a_room_knows_few_others(folder):
    counts = import_graph.counts_of(folder)
    assert counts.arrows <= 3.5 * counts.rooms, "run: python docs/import_graph.py --arrows"


def test_the_import_graph_sees_circles_and_arrows_between_stages():
    graph = {"pipeline.read.rows": {"pipeline.pack.plan"}, "pipeline.pack.plan": set()}
    assert list(import_graph.arrows_of(graph, "pipeline")) == [("read", "pack")]
    assert import_graph.circles_of(graph) == []
    graph["pipeline.pack.plan"] = {"pipeline.read.rows"}
    assert import_graph.circles_of(graph) == [set(graph)]
    assert import_graph.floors_of({"a": {"b"}, "b": {"c"}, "c": set(), "d": set()}) == 3


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=name_of)
def test_no_function_is_longer_than_60_lines(path):
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_a_drawer_for_odds_and_ends(path):
    assert path.stem not in {"utils", "helpers", "common", "misc", "registry", "factory"}


def test_the_tests_mirror_the_rooms():
    tests = (ROOT / "tests").rglob("test_*.py")
    tested = {str(path.parent.relative_to(ROOT / "tests")) for path in tests}
    rooms = {name_of(path.parent) for path in MODULES if path.name != "__init__.py"}
    assert {room for room in tested if not (ROOT / room).is_dir()} == set()
    assert rooms - tested == set()


def is_a_declaration(path: Path) -> bool:
    """Returns whether a module only names things: nothing in it is done."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return not any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)


def test_a_modules_tests_are_found_by_its_name():
    """Every module that does something has a `test_NAME.py` in the same room of the tests."""
    unnamed = [
        name_of(path)
        for path in MODULES
        if not (ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}").exists()
        and not is_a_declaration(path)
    ]
    assert unnamed == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_that_is_imported_is_ours(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).parent == ROOT / package


def test_the_distribution_offers_the_two_commands():
    commands = {entry.name for entry in distribution("aligngpt").entry_points}
    assert {"aligngpt-curate", "aligngpt-train"} <= commands
