"""Cuts the scores of all unique pairs into equally large alignment levels.

Every shard is counted where it lies; what is merged is a histogram of bounded size, pass by pass,
as `scoring.levels.edges` describes. A pass with nothing left to find reads nothing.
"""

from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsSingleton

from pipeline.dataset.edges import (
    LevelTally,
)
from pipeline.level.ranks import (
    average_shard,
    cut_ranks,
    rank_task,
    rank_tasks,
    remove_rank_files,
    sample_shard,
    spill_shard,
)
from pipeline.level.shard import (
    add_histograms,
    begin_search,
    count_shard,
    level_shard,
    plan_ranks,
    refine_all,
    save_found_edges,
    tally_shard,
    unique_fingerprint,
)
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig
from scoring.levels.edges import (
    NUM_PASSES,
)
from scoring.levels.ranks import parse_rank_mean


class AssignLevels(beam.PTransform):
    """Writes `levelled/` from `unique/`: shard numbers in, shard numbers out."""

    def __init__(self, layout: DatasetLayout, config: LevelConfig) -> None:
        super().__init__()
        self._layout, self._config = layout, config

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the shards whose levels are committed."""
        layout, config = self._layout, self._config
        uniques = (
            shards
            | "Fingerprint" >> beam.Map(unique_fingerprint, layout, config)
            | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
        )
        is_ranked = parse_rank_mean(config.by) is not None
        if is_ranked:
            shards = self._ranked(shards, uniques)
        search = uniques | "Begin" >> beam.Map(begin_search, layout, config)
        for number in range(1, NUM_PASSES + 1):
            search = (
                shards
                | f"Count {number}" >> beam.Map(count_shard, layout, config, AsSingleton(search))
                | f"Merge {number}" >> beam.CombineGlobally(MergeByGroup(add_histograms))
                | f"Refine {number}" >> beam.Map(refine_all, config, AsSingleton(search))
            )
        edges = (
            shards
            | "Tally" >> beam.Map(tally_shard, layout, config, AsSingleton(search))
            | "Merge tallies" >> beam.CombineGlobally(MergeByGroup(LevelTally.plus))
            | "Save" >> beam.Map(save_found_edges, layout, config, AsSingleton(search))
        )
        levelled = shards | "Assign" >> beam.Map(level_shard, layout, config, AsSingleton(edges))
        if is_ranked:
            done = levelled | "All levelled" >> beam.combiners.Count.Globally()
            _ = done | "Clean" >> beam.Map(remove_rank_files, layout)
        return levelled

    def _ranked(
        self, shards: beam.PCollection[int], uniques: beam.PCollection[list[tuple[int, str]]]
    ) -> beam.PCollection[int]:
        """Returns the shards once the means of their pairs' ranks are known."""
        layout, config = self._layout, self._config
        plan = AsSingleton(uniques | "Plan ranks" >> beam.Map(plan_ranks, layout, config))
        cuts = (
            shards
            | "Sample" >> beam.Map(sample_shard, layout, config, plan)
            | "Gather samples" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Cut" >> beam.Map(cut_ranks, layout, config, plan)
        )
        spill = beam.Map(spill_shard, layout, config, plan, AsSingleton(cuts))
        spilled = shards | "Spill" >> spill
        ranked = (
            cuts
            | "Tasks" >> beam.FlatMap(rank_tasks)
            | "Spread" >> beam.Reshuffle()
            | "After all spills" >> beam.WaitOn(spilled)
            | "Rank" >> beam.Map(rank_task, layout, plan, AsSingleton(cuts))
        )
        return (
            shards
            | "After all ranks" >> beam.WaitOn(ranked)
            | "Average" >> beam.Map(average_shard, layout, config, plan, AsSingleton(cuts))
        )


class MergeByGroup(beam.CombineFn):
    """Adds up what the shards say of each group."""

    def __init__(self, add: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self._add = add

    def create_accumulator(self) -> dict[str, Any]:
        """Returns nothing said of any group."""
        return {}

    def add_input(self, merged: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        """Returns the sum."""
        return self.merge_accumulators([merged, more])

    def merge_accumulators(self, accumulators: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """Returns the sum of all."""
        merged: dict[str, Any] = {}
        for accumulator in accumulators:
            for group, value in accumulator.items():
                merged[group] = self._add(merged[group], value) if group in merged else value
        return merged

    def extract_output(self, merged: dict[str, Any]) -> dict[str, Any]:
        """Returns the sum, by group."""
        return merged
