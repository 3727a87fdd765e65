"""The fetch stage: the pairs of a shard become images, tarred in the order of their keys."""

import apache_beam as beam

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.retry import RetrySession, finish_move, retry_shard
from pipeline.fetch.shard import fetch_shard
from schemas.shards import DatasetLayout


class FetchShards(beam.PTransform):
    """Fetches the shards of pairs whose numbers come in; they go out once committed.

    In a retry, what shards that are fetched already lack is asked for again.
    """

    def __init__(
        self, layout: DatasetLayout, config: FetchConfig, retry: RetrySession | None = None
    ) -> None:
        super().__init__()
        self._layout, self._config, self._retry = layout, config, retry

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the numbers of the fetched shards."""
        if self._retry is None:
            return shards | "FetchShard" >> beam.ParDo(_FetchShard(self._layout, self._config))
        retry = _RetryShard(self._layout, self._config, self._retry)
        return shards | "RetryShard" >> beam.ParDo(retry)


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


class _RetryShard(_FetchShard):
    """Fetches a shard if it is not fetched yet, and asks again for what it lacks."""

    def __init__(self, layout: DatasetLayout, config: FetchConfig, session: RetrySession) -> None:
        super().__init__(layout, config)
        self._session = session

    def process(self, shard: int) -> list[int]:
        finish_move(self._layout, shard)
        super().process(shard)
        retry_shard(self._layout, shard, self._config, self._session, self._memory)
        return [shard]
