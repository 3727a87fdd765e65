import tomllib
from importlib.metadata import version
from pathlib import Path

from schemas.versions import installed_versions, program_version


def test_versions_are_those_that_are_installed():
    found = installed_versions(["pyarrow", "no-such-package-of-anyone"])
    assert found == {
        "pyarrow": version("pyarrow"),
        "no-such-package-of-anyone": "not installed",
    }


def test_the_programs_version_stands_in_one_place():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert program_version() == tomllib.loads(project.read_text())["project"]["version"]
