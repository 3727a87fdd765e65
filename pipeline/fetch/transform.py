"""The fetch stage: the pairs of a shard become images, tarred in the order of their keys."""

import apache_beam as beam

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.retry import RetrySession, finish_move, retry_shard
from pipeline.fetch.shard import (
    fetch_shard,
)
from schemas.shards import DatasetLayout


class FetchShards(beam.PTransform):
    """Fetches the shards of pairs whose numbers come in; they go out once committed."""

    def __init__(self, layout: DatasetLayout, config: FetchConfig) -> None:
        super().__init__()
        self._layout, self._config = layout, config

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the numbers of the fetched shards."""
        return shards | "FetchShard" >> beam.ParDo(_FetchShard(self._layout, self._config))


class _FetchShard(beam.DoFn):
    """Fetches one shard at a time; remembers the hosts from shard to shard."""

    def __init__(self, layout: DatasetLayout, config: FetchConfig) -> None:
        super().__init__()
        self._layout, self._config = layout, config

    def setup(self) -> None:
        self._memory = HostMemory(self._config)

    def process(self, shard: int) -> list[int]:
        fetch_shard(self._layout, shard, self._config, self._memory)
        return [shard]


class RetryShards(beam.PTransform):
    """Asks again for what fetched shards lack; shards that are not fetched yet are fetched."""

    def __init__(self, layout: DatasetLayout, config: FetchConfig, session: RetrySession) -> None:
        super().__init__()
        self._layout, self._config, self._session = layout, config, session

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the numbers of the shards."""
        retry = _RetryShard(self._layout, self._config, self._session)
        return shards | "RetryShard" >> beam.ParDo(retry)


class _RetryShard(beam.DoFn):
    def __init__(self, layout: DatasetLayout, config: FetchConfig, session: RetrySession) -> None:
        super().__init__()
        self._layout, self._config, self._session = layout, config, session

    def setup(self) -> None:
        self._memory = HostMemory(self._config)

    def process(self, shard: int) -> list[int]:
        finish_move(self._layout, shard)
        fetch_shard(self._layout, shard, self._config, self._memory)
        retry_shard(self._layout, shard, self._config, self._session, self._memory)
        return [shard]
