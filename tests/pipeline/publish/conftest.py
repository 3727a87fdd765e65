"""A dataset of every kind of sample, published in both forms."""

from pathlib import Path

import pytest

from schemas.columns import read_table
from schemas.records import TRAIN_SCHEMA, hash_share
from schemas.shards import DatasetLayout
from tests.datasets import finish, write_fetched
from tests.publications import RATIO, SAMPLES, mixed_sample, publish


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    rows = sorted(map(mixed_sample, range(SAMPLES)), key=lambda row: row.key)
    # Readers take the types from the first rows: let those be the plainest.
    plain = [row for row in rows if row.captions is None and row.conversations is None]
    rows = [*plain[:6], *(row for row in rows if row not in plain[:6])]
    write_fetched(DatasetLayout(str(root)), 0, rows)
    finish(root, is_scored=False)
    return root


@pytest.fixture(scope="session")
def expected(dataset) -> dict[str, dict[str, dict]]:
    """Split to key to row."""
    rows = [
        row
        for path in sorted((dataset / "train").glob("*.parquet"))
        for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()
    ]
    split = {
        row["key"]: "validation" if hash_share(row["url"] or row["key"]) < RATIO else "train"
        for row in rows
    }
    return {
        name: {row["key"]: row for row in rows if split[row["key"]] == name}
        for name in ("train", "validation")
    }


@pytest.fixture(scope="session")
def tars(dataset, tmp_path_factory) -> Path:
    return publish(dataset, tmp_path_factory.mktemp("hub") / "tars", "webdataset")


@pytest.fixture(scope="session")
def tables(dataset, tmp_path_factory) -> Path:
    return publish(dataset, tmp_path_factory.mktemp("hub") / "tables", "parquet")
