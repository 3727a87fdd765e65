"""Keeps the best scored pair of every group of duplicates.

Pairs are duplicates if the pixels of their images are equal, or if their image embeddings are
close; groups are joined over all shards. `pipeline.deduplicate.search` has the steps of the search;
only shard numbers and descriptions of tasks flow between them.
"""

import functools

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsSingleton
from numpy.typing import NDArray

from pipeline.dataset.commits import is_committed, on_accelerator
from pipeline.dataset.fetched_rows import fetched_pairs
from pipeline.dataset.progress import ShardProgress, begin_step
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.dataset.worktimes import timed
from pipeline.deduplicate.distances import distances_to_kept, lend_kept
from pipeline.deduplicate.plan import (
    SearchPlan,
    SearchTask,
    kept_fingerprint,
    plan_search,
    search_folder,
    survey_shard,
)
from pipeline.deduplicate.search import (
    join_groups,
    read_decisions,
    search_task,
    spill_shard,
    tasks_of,
    train_plan,
)
from schemas.columns import read_table, write_table
from schemas.errors import RejectReason, SampleRejected
from schemas.records import SCORED_SCHEMA, UNIQUE_SCHEMA, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint, open_read, remove, remove_folder
from scoring.config import DeduplicateConfig


class KeepBestOfDuplicates(beam.PTransform):
    """Writes `unique/` from `scored/`: shard numbers in, shard numbers out."""

    def __init__(self, layout: DatasetLayout, config: DeduplicateConfig) -> None:
        super().__init__()
        self._layout, self._config = layout, config

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the shards whose unique pairs are committed."""
        layout, config = self._layout, self._config
        on_gpu = functools.partial(on_accelerator, config=config)
        plan = (
            shards
            | "Survey" >> beam.Map(survey_shard, layout)
            | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Plan" >> beam.Map(plan_search, layout, config)
            | "Train" >> on_gpu(beam.Map(train_plan, layout, config))
        )
        spill = beam.Map(spill_shard, layout, config, AsSingleton(plan))
        spilled = shards | "Spill" >> on_gpu(spill)
        search = beam.Map(search_task, layout, config, AsSingleton(plan))
        searched = (
            plan
            | "Tasks" >> beam.FlatMap(announced_tasks, layout)
            | "Spread" >> beam.Reshuffle()
            | "After all spills" >> beam.WaitOn(spilled)
            | "Search" >> on_gpu(search)
        )
        joined = (
            plan
            | "After all searches" >> beam.WaitOn(searched)
            | "Join" >> beam.Map(join_groups, layout)
        )
        lent = shards | "Lend" >> beam.Map(lend_kept, layout, AsSingleton(joined))
        unique = (
            shards
            | "After all loans" >> beam.WaitOn(lent)
            | "Keep" >> beam.Map(unique_shard, layout, AsSingleton(joined))
        )
        kept = unique | "All kept" >> beam.combiners.Count.Globally()
        _ = kept | "Clean" >> beam.Map(remove_search_files, layout)
        return unique


def announced_tasks(plan: SearchPlan, layout: DatasetLayout) -> list[SearchTask]:
    """Returns the tasks of the search, for all to see how many they are."""
    tasks = list(tasks_of(plan))
    if tasks:
        begin_step(layout, Stage.DEDUPLICATE, "spill", len(plan.shards))
        begin_step(layout, Stage.DEDUPLICATE, "search", len(tasks))
    return tasks


def unique_shard(shard: int, layout: DatasetLayout, plan: SearchPlan) -> int:
    """Returns the shard once its pairs that do not give way to a better one are committed."""
    upstream = committed_fingerprint(layout.scored(shard)) or ""
    fingerprint = kept_fingerprint(plan.fingerprint, upstream)
    marker = layout.unique(shard)
    if plan.is_done or is_committed(marker, fingerprint):
        return shard
    remove(marker)
    with timed(layout, Stage.DEDUPLICATE, "keep") as work:
        work.rows = _keep_and_commit(shard, layout, plan, fingerprint)
    return shard


def _keep_and_commit(shard: int, layout: DatasetLayout, plan: SearchPlan, fingerprint: str) -> int:
    """Commits the unique pairs of a shard and the others; returns how many pairs it has."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "clip_score"])
    decisions = read_decisions(plan, shard)
    with ShardProgress(layout, Stage.DEDUPLICATE, shard, len(scored)) as progress:
        rejected = decisions.filter(pc.invert(decisions["is_kept"]))
        distances = distances_to_kept(shard, layout, plan, rejected)
        rejections = _rejections(layout, shard, scored, rejected, distances)
        write_rejections(layout, Stage.DEDUPLICATE, shard, rejections, fingerprint)
        counts = np.zeros(len(scored), np.int32)
        counts[decisions["row"].to_numpy()] = decisions["duplicate_count"].to_numpy()
        kept = np.setdiff1d(np.arange(len(scored)), rejected["row"].to_numpy())
        table = pa.table(
            {**_columns(scored.take(pa.array(kept))), "duplicate_count": counts[kept]},
            schema=UNIQUE_SCHEMA,
        )
        with commit_file(layout.unique(shard)) as file:
            write_table(table, file, {"fingerprint": fingerprint})
        progress.update(len(kept), len(rejections))
    return len(scored)


def remove_search_files(kept: int, layout: DatasetLayout) -> int:
    """Returns the number of shards, once the files of the search are gone."""
    remove_folder(search_folder(layout))
    return kept


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _rejections(
    layout: DatasetLayout,
    shard: int,
    scored: pa.Table,
    rejected: pa.Table,
    distances: tuple[NDArray[np.float64], NDArray[np.float32]],
) -> list[Rejection]:
    losers = scored.take(rejected["row"])
    rows = zip(
        fetched_pairs(layout, shard, losers["key"]),
        losers["clip_score"].to_pylist(),
        rejected["kept_key"].to_pylist(),
        rejected["is_exact"].to_pylist(),
        *(pa.array(values, from_pandas=True).to_pylist() for values in distances),
        strict=True,
    )
    rejections = []
    for pair, score, kept_key, is_exact, cosine, look in rows:
        if is_exact:
            reason, like = RejectReason.EXACT_DUPLICATE, "the same pixels as"
        else:
            reason, like = RejectReason.NEAR_DUPLICATE, "nearly the same image as"
        detail = f"{like} {kept_key}, which scored no lower"
        rejected_pair = SampleRejected(reason, detail)
        known = {"kept_key": kept_key, "clip_score": score}
        known |= {"kept_cosine": cosine, "kept_look": look}
        rejections.append(rejection(pair, rejected_pair, **known))
    return rejections
