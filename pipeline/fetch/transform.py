"""The fetch stage: the pairs of a shard become images, tarred in the order of their keys."""

from collections.abc import Iterator

import apache_beam as beam
from apache_beam.pipeline import transform_annotations
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.config import FetchConfig
from pipeline.dataset.commits import AT_ONCE
from pipeline.dataset.deny import DenyFiles
from pipeline.fetch.overlap import ShardsAtOnce
from pipeline.fetch.retry import RetrySession, finish_move, retry_shard
from pipeline.fetch.shard import fetch_shard
from pipeline.fetch.sharing import NOTHING_DENIED, FetchSession
from schemas.shards import DatasetLayout


class FetchShards(beam.PTransform):
    """Fetches the shards of pairs whose numbers come in; they go out once committed.

    In a retry, what shards that are fetched already lack is asked for again.
    """

    def __init__(
        self,
        layout: DatasetLayout,
        config: FetchConfig,
        retry: RetrySession | None = None,
        denied: DenyFiles = NOTHING_DENIED,
    ) -> None:
        """Takes how to fetch.

        Args:
            denied: lists of addresses that no redirect may lead to.
        """
        super().__init__()
        self._layout, self._config, self._retry, self._denied = layout, config, retry, denied

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the numbers of the fetched shards."""
        with transform_annotations(**{AT_ONCE: str(self._config.shards_at_once)}):
            if self._retry is None:
                fetch = _FetchShard(self._layout, self._config, self._denied)
                return shards | "FetchShard" >> beam.ParDo(fetch)
            retry = _RetryShard(self._layout, self._config, self._denied, self._retry)
            return shards | "RetryShard" >> beam.ParDo(retry)


class _FetchShard(beam.DoFn):
    """Fetches several shards at once; remembers the hosts from shard to shard."""

    def __init__(self, layout: DatasetLayout, config: FetchConfig, denied: DenyFiles) -> None:
        super().__init__()
        self._layout, self._config, self._denied = layout, config, denied

    def setup(self) -> None:
        # Kept while this object is: what is known of hosts lasts from bundle to bundle.
        self._lasting = FetchSession(self._config, self._denied)
        self._shards: ShardsAtOnce | None = None

    def start_bundle(self) -> None:
        self._stop()  # what a bundle that failed has left
        self._session = FetchSession(self._config, self._denied)
        # img2dataset has connections of its own for each shard.
        at_once = self._config.shards_at_once if self._config.engine == "aligngpt" else 1
        self._shards = ShardsAtOnce(self._fetch, at_once, self._session.abandon)

    def process(self, shard: int) -> list[int]:
        assert self._shards is not None
        return self._shards.add(shard)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        assert self._shards is not None
        for shard in self._shards.finish():
            yield WindowedValue(shard, MIN_TIMESTAMP, [GlobalWindow()])
        self._stop()

    def teardown(self) -> None:
        self._stop()
        self._lasting.close()

    def _stop(self) -> None:
        if self._shards is not None:
            self._shards.stop()
            self._session.close()
            self._shards = None

    def _fetch(self, shard: int) -> None:
        fetch_shard(self._layout, shard, self._config, self._session)


class _RetryShard(_FetchShard):
    """Fetches shards that are not fetched yet, and asks again for what the others lack."""

    def __init__(
        self, layout: DatasetLayout, config: FetchConfig, denied: DenyFiles, retry: RetrySession
    ) -> None:
        super().__init__(layout, config, denied)
        self._retry = retry

    def _fetch(self, shard: int) -> None:
        finish_move(self._layout, shard)
        super()._fetch(shard)
        retry_shard(self._layout, shard, self._config, self._retry, self._session)
