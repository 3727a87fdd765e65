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


imported_modules = import_graph.imported_modules
counts_of = functools.cache(import_graph.counts_of)


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


@functools.cache
def functions_of(path: Path) -> dict[str, int]:
    """Returns the functions of a file, methods too, with how many lines each has."""
    return {
        f"{node.name} in line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_one_way():
    allowed = {path: MAY_IMPORT[path.relative_to(ROOT).parts[0]] for path in MODULES}
    astray = {
        name_of(path): others
        for path in MODULES
        if (others := (imported_packages(path) & set(PACKAGES)) - allowed[path])
    }
    assert astray == {}


@pytest.mark.parametrize(
    ("library", "package"), [("apache_beam", "pipeline"), ("deepspeed", "training")]
)
def test_only_pipeline_knows_beam_and_only_training_knows_deepspeed(library, package):
    knowing = {name_of(path) for path in MODULES if library in imported_packages(path)}
    assert {name for name in knowing if not name.startswith(f"{package}/")} == set()
    assert knowing != set()


def test_only_the_graph_its_steps_and_the_job_know_beam():
    knowing = [path for path in MODULES if "apache_beam" in imported_packages(path)]
    others = [
        name_of(path)
        for path in knowing
        if path.name != "transform.py" and path != ROOT / "pipeline" / "curate.py"
        if not name_of(path).startswith("pipeline/job/")
    ]
    assert others == []


def test_no_stage_imports_another():
    stages = {path: path.relative_to(ROOT).parts[1] for path in (ROOT / "pipeline").rglob("*.py")}
    imported = {
        name_of(path): {
            module.split(".")[1]
            for module in imported_modules(path)
            if module.startswith("pipeline.")
        }
        & (STAGES - {stage})
        for path, stage in stages.items()
        if stage in STAGES
    }
    assert {name: others for name, others in imported.items() if others} == {}
    assert imported != {}


@pytest.mark.parametrize("folder", import_graph.FOLDERS)
def test_imports_lead_down_and_never_round(folder):
    counts = counts_of(folder)
    assert counts.rooms > 1
    assert (counts.back_up, counts.circles, counts.stage_to_stage) == (0, 0, 0)


@pytest.mark.parametrize("folder", import_graph.FOLDERS)
def test_a_room_knows_few_others(folder):
    counts = counts_of(folder)
    assert counts.arrows <= 3.5 * counts.rooms, "run: python docs/import_graph.py --arrows"


def test_the_import_graph_sees_circles_and_arrows_between_stages():
    graph = {"pipeline.read.rows": {"pipeline.pack.plan"}, "pipeline.pack.plan": set()}
    assert list(import_graph.arrows_of(graph, "pipeline")) == [("read", "pack")]
    assert import_graph.circles_of(graph) == []
    graph["pipeline.pack.plan"] = {"pipeline.read.rows"}
    assert import_graph.circles_of(graph) == [set(graph)]
    assert import_graph.floors_of({"a": {"b"}, "b": {"c"}, "c": set(), "d": set()}) == 3


def test_no_file_is_longer_than_400_lines():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{name_of(path)}: {function}": length
        for path in (*MODULES, *SCRIPTS)
        for function, length in functions_of(path).items()
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert len(lengths) > len(MODULES)


def test_no_module_is_a_drawer_for_odds_and_ends():
    drawers = {"utils", "helpers", "common", "misc", "registry", "factory"}
    assert [name_of(path) for path in MODULES if path.stem in drawers] == []


def test_the_tests_mirror_the_rooms():
    tests = (ROOT / "tests").rglob("test_*.py")
    tested = {str(path.parent.relative_to(ROOT / "tests")) for path in tests}
    rooms = {name_of(path.parent) for path in MODULES if path.name != "__init__.py"}
    assert {room for room in tested if not (ROOT / room).is_dir()} == set()
    assert rooms - tested == set()


def test_a_modules_tests_are_found_by_its_name():
    """Every module that does something has a `test_NAME.py` in the same room of the tests."""
    unnamed = [
        name_of(path)
        for path in MODULES
        if not (ROOT / "tests" / path.relative_to(ROOT).parent / f"test_{path.name}").exists()
        and functions_of(path)  # not one that only names things
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
