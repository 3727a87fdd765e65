from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from pipeline.fetch.transform import FetchShards
from schemas.shards import DatasetLayout
from tests.fetches import config, fetched_rows, picture, write_pairs
from tests.web_server import WebServer


@pytest.mark.slow
def test_the_transform_passes_on_the_shards_that_it_fetched(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    for shard in range(2):
        url = web_server.serve(f"/{shard}.jpg", picture(shard))
        write_pairs(layout, [(url, "a")], shard)
    with beam.Pipeline("FnApiRunner") as pipeline:
        numbers = pipeline | beam.Create([0, 1]) | FetchShards(layout, config(web_server))
        assert_that(numbers, equal_to([0, 1]))
    assert len(fetched_rows(layout, 0)) == len(fetched_rows(layout, 1)) == 1
