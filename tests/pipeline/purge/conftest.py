"""A finished dataset to purge."""

from pathlib import Path

import pytest

from tests.datasets import finish, write_dataset


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A finished dataset of 38 train samples in 3 shards; two pairs of 42 were never fetched."""
    root = tmp_path_factory.mktemp("whole")
    write_dataset(root)
    finish(root)
    return root
