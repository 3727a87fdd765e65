"""Recaption: pictures of the lowest levels get a caption by a model; the better of both counts."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipeline.dataset.commits import on_accelerator
from pipeline.recaption.shard import recaption_shard
from schemas.shards import DatasetLayout
from scoring.config import RecaptionConfig, ScoreConfig


class RecaptionShards(beam.PTransform):
    """Writes `recaptioned/` from `levelled/`: shard numbers in, shard numbers out."""

    def __init__(self, layout: DatasetLayout, config: RecaptionConfig, score: ScoreConfig) -> None:
        super().__init__()
        self._layout, self._config, self._score = layout, config, score

    def expand(self, shards: Any) -> Any:
        """Returns the numbers of the shards, once their captions are committed."""
        write = beam.ParDo(_RecaptionShard(self._layout, self._config, self._score))
        return shards | "Write" >> on_accelerator(write, self._score)


class _RecaptionShard(beam.DoFn):
    def __init__(self, layout: DatasetLayout, config: RecaptionConfig, score: ScoreConfig) -> None:
        super().__init__()
        self._layout, self._config, self._score = layout, config, score

    def process(self, shard: int) -> Iterator[int]:
        recaption_shard(self._layout, shard, self._config, self._score)
        yield shard
