import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest

from pipeline.score.shard import score_shard
from pipeline.score.transform import ScoreShards
from schemas.shards import DatasetLayout
from tests.scored import assert_all, make_shard


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_shards_are_scored_by_a_beam_job(tiny_clip: Any, tmp_path: Path, device: str) -> None:
    layout, alone = DatasetLayout(str(tmp_path / "job")), DatasetLayout(str(tmp_path / "alone"))
    config = tiny_clip.score_config(device=device)
    for shard in range(3):
        make_shard(layout, shard)
    shutil.copytree(layout.root, alone.root)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        shards = pipeline | beam.Create([0, 1, 2])
        scored = shards | ScoreShards(layout, config)
        (scored | beam.combiners.ToList() | beam.Map(lambda found: assert_all(found, {0, 1, 2})))
    for shard in range(3):
        score_shard(alone, shard, config)
        assert Path(layout.scored(shard)).read_bytes() == Path(alone.scored(shard)).read_bytes()


@pytest.mark.parametrize(("device", "is_asked_for"), [("cuda", True), ("cpu", False)])
def test_gpu_workers_are_asked_for_only_where_the_model_needs_one(
    tiny_clip: Any, device: str, is_asked_for: bool
) -> None:
    config = tiny_clip.score_config(device=device, accelerator="type:nvidia-h200;count:1")
    pipeline = beam.Pipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([0]) | ScoreShards(DatasetLayout("unused"), config)
    assert (b"type:nvidia-h200;count:1" in pipeline.to_runner_api().SerializeToString()) is (
        is_asked_for
    )
