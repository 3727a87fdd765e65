"""A finished dataset that nothing is wrong with."""

import json
from pathlib import Path

import pytest

from tests.datasets import finish, write_dataset


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A dataset of three train shards (15, 15 and 8 samples) that nothing is wrong with."""
    root = tmp_path_factory.mktemp("whole")
    write_dataset(root)
    manifest = finish(root)
    levels = [
        {
            "level": level["level"],
            "count": level["count"],
            "min_score": level["lowest_score"],
            "max_score": level["highest_score"],
        }
        for level in manifest.level_edges
    ]
    (root / "levelled" / "edges.json").write_text(json.dumps({"levels": levels, "drift": None}))
    return root
