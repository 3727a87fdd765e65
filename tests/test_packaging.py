"""What is installed is what is declared."""

import re
import tomllib
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest

from schemas.versions import installed_versions, program_version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(file: str) -> dict[str, str]:
    """Returns package to version, names in their usual form."""
    found = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
    return {usual(name): number for name, number in found}


def usual(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_is_written_once_in_pyproject() -> None:
    assert program_version() == PROJECT["version"] == version("aligngpt")
    assert installed_versions(["aligngpt", "no-such-package"]) == {
        "aligngpt": PROJECT["version"],
        "no-such-package": "not installed",
    }


@pytest.mark.parametrize("package", ["schemas", "scoring", "pipeline", "training"])
def test_type_checkers_of_others_may_trust_our_types(package: str) -> None:
    assert files(package).joinpath("py.typed").is_file()


def test_every_declared_package_has_one_version_in_constraints_and_lock() -> None:
    constraints, lock = pinned("constraints.txt"), pinned("requirements.lock")
    declared = [*PROJECT["dependencies"]]
    for extra in ("curate", "train", "serve", "demo", "dev"):
        declared += PROJECT["optional-dependencies"][extra]
    names = {usual(re.split(r"[\[<>=!~ ]", word)[0]) for word in declared}
    assert names <= constraints.keys()
    assert names <= lock.keys(), "run: make lock"
    other = {
        name: (number, constraints[name])
        for name, number in lock.items()
        if constraints.get(name, number) != number
    }
    assert other == {}, "run: make lock"


def test_every_file_of_the_lock_has_a_hash() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[\w.-]+(?:\[[\w,]+\])?==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 100
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
