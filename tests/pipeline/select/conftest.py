"""A finished dataset to select from."""

from pathlib import Path

import pytest

from tests.datasets import finish, write_dataset


@pytest.fixture(scope="session")
def parent(tmp_path_factory) -> Path:
    """A finished dataset of 38 samples in 4 levels."""
    root = tmp_path_factory.mktemp("parent")
    write_dataset(root)
    finish(root)
    return root
