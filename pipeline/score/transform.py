"""Score: every fetched pair gets the cosine of its image and its caption, and its embeddings."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam

from pipeline.dataset.commits import on_accelerator
from pipeline.dataset.progress import begin_step
from pipeline.score.shard import score_shard
from pipeline.score.signals import add_signals, looks_at_pictures, signal_steps
from schemas.shards import DatasetLayout
from schemas.stages import Stage
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
        done = shards | "Score" >> on_accelerator(scored, self._config)
        return self._with_signals(done) if self._config.signals else done

    def _with_signals(self, shards: Any) -> Any:
        """Returns the shards once they have their signals: some look at all shards' embeddings."""
        layout, config = self._layout, self._config
        gathered = (
            shards
            | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Announce" >> beam.Map(announced, layout, len(signal_steps(config)))
        )
        for number, step in enumerate(signal_steps(config), 1):
            add = beam.Map(add_signals, layout, step, beam.pvalue.AsSingleton(gathered))
            add = on_accelerator(add, config) if looks_at_pictures(step) else add
            # Spread anew, a step begins when the one before is done: one model at a time.
            spread = shards | f"SpreadToSignals {number}" >> beam.Reshuffle()
            shards = spread | f"Signals {number}" >> add
        return shards


def announced(shards: list[int], layout: DatasetLayout, steps: int) -> list[int]:
    """Returns all shards, for all to see how many get signals, and how often."""
    begin_step(layout, Stage.SCORE, "signals", len(shards) * steps)
    return shards


class _ScoreShard(beam.DoFn):
    def __init__(self, layout: DatasetLayout, config: ScoreConfig) -> None:
        super().__init__()
        self._layout = layout
        self._config = config

    def process(self, shard: int) -> Iterator[int]:
        score_shard(self._layout, shard, self._config)
        yield shard
