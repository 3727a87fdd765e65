"""Keeps the best scored pair of every group of duplicates.

Pairs are duplicates if the pixels of their images are equal, or if their image embeddings are
close; groups are joined over all shards. `pipeline.duplicate_search` has the steps of the search;
only shard numbers and descriptions of tasks flow between them.
"""

import dataclasses
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.pvalue import AsSingleton
from fsspec.core import url_to_fs

from pipeline.duplicate_search import (
    SearchPlan,
    SearchTask,
    join_groups,
    read_decisions,
    search_task,
    spill_shard,
    tasks_of,
    train_plan,
)
from pipeline.progress import ShardProgress
from pipeline.stages import (
    deciding_settings,
    is_committed,
    rejection,
    stage_fingerprint,
    write_rejections,
)
from pipeline.storage import commit_file, committed_fingerprint, open_read, remove
from schemas.columns import read_table, write_table
from schemas.errors import ConfigError, DatasetError, RejectReason, SampleRejected, Stage
from schemas.records import FETCHED_SCHEMA, SCORED_SCHEMA, UNIQUE_SCHEMA, CaptionedImage, Rejection
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig

NOT_DECIDING = frozenset({"memory_bytes"})
PAIR_COLUMNS = [field.name for field in dataclasses.fields(CaptionedImage)]


@dataclass(frozen=True, slots=True)
class ShardSurvey:
    """What the plan needs to know of a shard."""

    shard: int
    rows: int
    width: int
    """Numbers in an embedding; 0 if none is stored."""
    fingerprint: str


class KeepBestOfDuplicates(beam.PTransform):
    """Writes `unique/` from `scored/`: shard numbers in, shard numbers out."""

    def __init__(self, layout: DatasetLayout, config: DeduplicateConfig) -> None:
        super().__init__()
        self._layout, self._config = layout, config

    def expand(self, shards: beam.PCollection[int]) -> beam.PCollection[int]:
        """Returns the shards whose unique pairs are committed."""
        layout, config = self._layout, self._config
        plan = (
            shards
            | "Survey" >> beam.Map(survey_shard, layout)
            | "Gather" >> beam.CombineGlobally(beam.combiners.ToListCombineFn())
            | "Plan" >> beam.Map(plan_search, layout, config)
            | "Train" >> beam.Map(train_plan, layout, config)
        )
        spilled = (
            shards
            | "Spill" >> beam.Map(spill_shard, layout, config, AsSingleton(plan))
            | "All spilled" >> beam.combiners.Count.Globally()
        )
        searched = (
            plan
            | "Tasks" >> beam.FlatMap(tasks_of)
            | "Spread" >> beam.Reshuffle()
            | "Search"
            >> beam.Map(search_after, layout, config, AsSingleton(plan), AsSingleton(spilled))
            | "All searched" >> beam.combiners.Count.Globally()
        )
        joined = plan | "Join" >> beam.Map(join_after, layout, AsSingleton(searched))
        unique = shards | "Keep" >> beam.Map(unique_shard, layout, AsSingleton(joined))
        kept = unique | "All kept" >> beam.combiners.Count.Globally()
        _ = kept | "Clean" >> beam.Map(remove_search_files, layout)
        return unique


def survey_shard(shard: int, layout: DatasetLayout) -> ShardSurvey:
    """Returns how many rows and how wide embeddings the shard has.

    Raises:
        DatasetError: if it is not scored.
    """
    fingerprint = committed_fingerprint(layout.scored(shard))
    if fingerprint is None:
        raise DatasetError(f"{layout.scored(shard)} is missing: score the dataset first")
    width = 0
    with open_read(layout.scored(shard)) as file, pq.ParquetFile(file) as parquet:
        rows = parquet.metadata.num_rows
        for batch in parquet.iter_batches(1, columns=["image_embedding"]):
            embedding = batch["image_embedding"][0]
            width = len(embedding) if embedding.is_valid else 0
            break
    return ShardSurvey(shard, rows, width, fingerprint)


def plan_search(
    surveys: list[ShardSurvey], layout: DatasetLayout, config: DeduplicateConfig
) -> SearchPlan:
    """Returns the plan of the search over all shards.

    Raises:
        ConfigError: if near-duplicates are asked for and embeddings are missing.
    """
    surveys = sorted(surveys, key=lambda survey: survey.shard)
    widths = {survey.width for survey in surveys if survey.rows} or {0}
    is_near = config.threshold <= 1
    has_rows = any(survey.rows for survey in surveys)
    if is_near and has_rows and (len(widths) > 1 or 0 in widths):
        raise ConfigError(
            f"deduplicate.threshold is {config.threshold}, but not all scored shards hold image "
            "embeddings of one width: score again with score.keep_embeddings, or set "
            "deduplicate.threshold above 1 to leave near-duplicates in"
        )
    fingerprint = stage_fingerprint(
        Stage.DEDUPLICATE,
        deciding_settings(config, leave_out=sorted(NOT_DECIDING)),
        [f"{survey.shard}:{survey.fingerprint}" for survey in surveys],
    )
    return SearchPlan(
        fingerprint=fingerprint,
        folder=f"{search_folder(layout)}/{fingerprint}",
        shards=tuple(survey.shard for survey in surveys),
        offsets=(0, *np.cumsum([survey.rows for survey in surveys]).tolist()),
        width=widths.pop() if is_near else 0,
        is_done=all(
            is_committed(
                layout.unique(survey.shard), _shard_fingerprint(fingerprint, survey.fingerprint)
            )
            for survey in surveys
        ),
    )


def search_after(
    task: SearchTask,
    layout: DatasetLayout,
    config: DeduplicateConfig,
    plan: SearchPlan,
    spilled: int,
) -> SearchTask:
    """Returns the task once it is done; `spilled` makes it wait until all shards are spilled."""
    del spilled
    return search_task(task, layout, config, plan)


def join_after(plan: SearchPlan, layout: DatasetLayout, searched: int) -> SearchPlan:
    """Returns the plan once groups are joined; `searched` makes it wait for all searches."""
    del searched
    return join_groups(plan, layout)


def unique_shard(shard: int, layout: DatasetLayout, plan: SearchPlan) -> int:
    """Returns the shard once its pairs that do not give way to a better one are committed."""
    upstream = committed_fingerprint(layout.scored(shard)) or ""
    fingerprint = _shard_fingerprint(plan.fingerprint, upstream)
    marker = layout.unique(shard)
    if plan.is_done or is_committed(marker, fingerprint):
        return shard
    remove(marker)
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "clip_score"])
    decisions = read_decisions(plan, shard)
    with ShardProgress(layout, Stage.DEDUPLICATE, shard, len(scored)) as progress:
        rejected = decisions.filter(pc.invert(decisions["is_kept"]))
        rejections = _rejections(layout, shard, scored, rejected)
        write_rejections(layout, Stage.DEDUPLICATE, shard, rejections, fingerprint)
        counts = np.zeros(len(scored), np.int32)
        counts[decisions["row"].to_numpy()] = decisions["duplicate_count"].to_numpy()
        kept = np.setdiff1d(np.arange(len(scored)), rejected["row"].to_numpy())
        table = pa.table(
            {**_columns(scored.take(pa.array(kept))), "duplicate_count": counts[kept]},
            schema=UNIQUE_SCHEMA,
        )
        with commit_file(marker) as file:
            write_table(table, file, {"fingerprint": fingerprint})
        progress.update(len(kept), len(rejections))
    return shard


def remove_search_files(kept: int, layout: DatasetLayout) -> int:
    """Returns the number of shards, once the files of the search are gone."""
    filesystem, name = url_to_fs(search_folder(layout))
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)
    return kept


def search_folder(layout: DatasetLayout) -> str:
    """Returns the folder of the files that the search leaves behind while it runs."""
    return f"{layout.run}/deduplicate"


def _shard_fingerprint(groups: str, scored: str) -> str:
    return stage_fingerprint(Stage.DEDUPLICATE, {"groups": groups}, [scored])


def _columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return {name: table[name] for name in table.column_names}


def _rejections(
    layout: DatasetLayout, shard: int, scored: pa.Table, rejected: pa.Table
) -> list[Rejection]:
    if not len(rejected):
        return []
    with open_read(layout.fetched(shard, "parquet")) as file:
        fetched = read_table(file, FETCHED_SCHEMA, PAIR_COLUMNS)
    losers = scored.take(rejected["row"])
    places = pc.index_in(losers["key"].combine_chunks(), value_set=fetched["key"].combine_chunks())
    rows = zip(
        fetched.take(places).to_pylist(),
        losers["clip_score"].to_pylist(),
        rejected["kept_key"].to_pylist(),
        rejected["is_exact"].to_pylist(),
        strict=True,
    )
    rejections = []
    for pair, score, kept_key, is_exact in rows:
        if is_exact:
            reason, like = RejectReason.EXACT_DUPLICATE, "the same pixels as"
        else:
            reason, like = RejectReason.NEAR_DUPLICATE, "nearly the same image as"
        detail = f"{like} {kept_key}, which scored no lower"
        rejected_pair = SampleRejected(reason, detail)
        rejections.append(
            rejection(CaptionedImage(**pair), rejected_pair, kept_key=kept_key, clip_score=score)
        )
    return rejections
