"""Pack: from fetched shards and their levels to `train/`, WebDataset shards of exact size.

A plan made from the counts of the shards says which rows of which shards make each train shard.
Each is then written in one pass over a contiguous range, image by image; nothing is shuffled.
"""

from collections.abc import Iterable

import apache_beam as beam

from pipeline.config import PackConfig
from pipeline.dataset.progress import begin_step
from pipeline.dataset.train_shards import write_index
from pipeline.dataset.worktimes import timed
from pipeline.pack.plan import TrainShardPlan, count_rows, plan_from_counts
from pipeline.pack.shard import pack_shard
from schemas.shards import DatasetLayout
from schemas.stages import Stage


class PackShards(beam.PTransform):
    """Packs the shards whose numbers come in; the numbers of the train shards go out."""

    def __init__(
        self,
        layout: DatasetLayout,
        config: PackConfig,
        has_levels: bool,
        is_recaptioned: bool = False,
    ) -> None:
        super().__init__()
        self._layout, self._config = layout, config
        self._has_levels, self._is_recaptioned = has_levels, is_recaptioned

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Waits for all shards, since the plan is made from their counts, and packs."""
        layout, config = self._layout, self._config
        has_levels, is_recaptioned = self._has_levels, self._is_recaptioned
        one = shards.pipeline | beam.Create([None])
        # Counted where they lie, by all workers: one would take an hour for all on a store.
        counts = shards | "Count" >> beam.Map(count_rows, layout, has_levels)
        packed = (
            one
            | "Plan"
            >> beam.FlatMap(
                lambda _, counted: announced_plans(
                    layout, counted, config, has_levels, is_recaptioned
                ),
                beam.pvalue.AsIter(counts),
            )
            | "SpreadPlans" >> beam.Reshuffle()
            | "PackShard" >> beam.Map(lambda plan: pack_shard(layout, plan, config))
        )
        return (
            one
            | "Index"
            >> beam.FlatMap(
                lambda _, counts: write_index(layout, counts), beam.pvalue.AsIter(packed)
            )
            | "SpreadTrainShards" >> beam.Reshuffle()
        )


def announced_plans(
    layout: DatasetLayout,
    counts: Iterable[tuple[int, int]],
    config: PackConfig,
    has_levels: bool,
    is_recaptioned: bool,
) -> list[TrainShardPlan]:
    """Returns the plans of all train shards, for all to see how much there is to pack."""
    with timed(layout, Stage.PACK, "plan") as work:
        plans = plan_from_counts(layout, counts, config, has_levels, is_recaptioned)
        work.rows = sum(plan.samples for plan in plans)
    begin_step(layout, Stage.PACK, "", work.rows)
    return plans
