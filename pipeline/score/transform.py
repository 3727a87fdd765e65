"""Score: every fetched pair gets the cosine of its image and its caption, and its embeddings."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipeline.dataset.commits import on_accelerator
from pipeline.score.shard import score_shard
from schemas.shards import DatasetLayout
from scoring.config import ScoreConfig


class ScoreShards(beam.PTransform):
    """Scores fetched shards: PCollection[int] to PCollection[int], one model in each process."""

    def __init__(self, layout: DatasetLayout, config: ScoreConfig) -> None:
        super().__init__()
        self._layout = layout
        self._config = config

    def expand(self, shards: Any) -> Any:
        """Returns the numbers of the shards, once they are scored."""
        scored = beam.ParDo(_ScoreShard(self._layout, self._config))
        return shards | "Score" >> on_accelerator(scored, self._config)


class _ScoreShard(beam.DoFn):
    def __init__(self, layout: DatasetLayout, config: ScoreConfig) -> None:
        super().__init__()
        self._layout = layout
        self._config = config

    def process(self, shard: int) -> Iterator[int]:
        score_shard(self._layout, shard, self._config)
        yield shard
