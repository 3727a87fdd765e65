"""A dataset to look at, with its rows and its page."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from pipeline.browse.page import Page
from pipeline.browse.rows import DatasetRows
from pipeline.dataset.rejections import rejection, write_rejections
from schemas.columns import read_table
from schemas.errors import RejectReason, SampleRejected
from schemas.records import FETCHED_SCHEMA, CaptionedImage
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.datasets import finish, write_dataset

HOSTILE = "<script>alert(1)</script> \x1b[31m"


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A dataset of 38 kept rows, two near-duplicates and two pictures that are gone."""
    root = tmp_path_factory.mktemp("browse") / "data"
    write_dataset(root)
    finish(root)
    layout = DatasetLayout(str(root))
    with Path(layout.fetched(0, "parquet")).open("rb") as file:
        row = read_table(file, FETCHED_SCHEMA, ["key", "url", "source"]).slice(0, 1).to_pylist()[0]
    pair = CaptionedImage(**row, caption=HOSTILE, conversations=None, expected_hash=None)
    kept = pq.read_table(layout.train(0, "parquet"))["key"][0].as_py()
    known = {"kept_key": kept, "clip_score": 0.1, "kept_cosine": 0.98, "kept_look": 12.5}
    rejected = SampleRejected(RejectReason.NEAR_DUPLICATE, "nearly the same")
    write_rejections(layout, Stage.DEDUPLICATE, 0, [rejection(pair, rejected, **known)], "d")
    return root


@pytest.fixture(scope="session")
def rows(root):
    rows = DatasetRows(str(root))
    yield rows
    rows.close()


@pytest.fixture(scope="session")
def client(rows):
    return TestClient(Page(rows).app(), base_url="http://127.0.0.1")
