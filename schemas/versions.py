"""Versions of this program and of the libraries that it stands on, as they are installed."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Returns package to version; `not installed` where there is none."""
    return {package: _installed(package) for package in packages}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def program_version() -> str:
    """Returns the version of this program; pyproject.toml is where it is written."""
    return version("aligngpt")
