"""The whole job: read this first.

Only shard numbers flow between the stages. What a stage makes of a shard lies in the dataset's
folder, at the paths of `schemas.shards.DatasetLayout`; a stage that finds it there, made under the
same settings from the same input, leaves it as it is. So a job that was stopped goes on where it
was, and each stage can be run alone.
"""

from collections.abc import Sequence

import apache_beam as beam

from pipeline.config import CurationConfig
from pipeline.deduplicate.plan import NOT_DECIDING as DEDUPLICATE_NOT_DECIDING
from pipeline.deduplicate.transform import KeepBestOfDuplicates
from pipeline.fetch.retry import RetrySession
from pipeline.fetch.shard import NOT_DECIDING as FETCH_NOT_DECIDING
from pipeline.fetch.transform import FetchShards, RetryShards
from pipeline.level.transform import AssignLevels
from pipeline.pack.transform import PackShards
from pipeline.read.transform import ReadPairs
from pipeline.score.transform import NOT_DECIDING as SCORE_NOT_DECIDING
from pipeline.score.transform import ScoreShards
from schemas.shards import DatasetLayout
from schemas.stages import Stage

NOT_DECIDING = {
    Stage.FETCH: frozenset(FETCH_NOT_DECIDING),
    # A fingerprint holds the model's identity in place of its path; a person is asked first.
    Stage.SCORE: frozenset(SCORE_NOT_DECIDING) - {"model", "pretrained"},
    Stage.DEDUPLICATE: DEDUPLICATE_NOT_DECIDING,
}
"""Settings of a stage that change how it works, but not what it makes."""


def curate(
    pipeline: beam.Pipeline,
    layout: DatasetLayout,
    config: CurationConfig,
    stages: Sequence[Stage],
    files: Sequence[str] = (),
    shards: Sequence[int] = (),
    retry: RetrySession | None = None,
) -> beam.PCollection[int]:
    """Returns the shards that the last of the stages gives: the whole graph.

    Args:
        stages: those to run, in their order and without gaps.
        files: where the pairs are, if `read` is among the stages.
        shards: the shards to start from, if it is not.
        retry: which images to ask for again, if any.
    """
    fetch: beam.PTransform = FetchShards(layout, config.fetch)
    if retry is not None:
        fetch = RetryShards(layout, config.fetch, retry)
    graph: dict[Stage, beam.PTransform] = {
        Stage.READ: ReadPairs(layout, config.read, files),
        Stage.FETCH: fetch,
        Stage.SCORE: ScoreShards(layout, config.score),
        Stage.DEDUPLICATE: KeepBestOfDuplicates(layout, config.deduplicate),
        Stage.LEVEL: AssignLevels(layout, config.levels),
        Stage.PACK: PackShards(layout, config.pack, has_levels=config.is_scored),
    }
    if stages[0] is Stage.READ:
        flowing = pipeline | name_of(Stage.READ) >> graph[Stage.READ]
    else:
        flowing = pipeline | "Start" >> beam.Create(list(shards))
    for stage in stages:
        if stage is not Stage.READ:  # stages that a runner fuses share a worker, and its GPU
            spread = flowing | f"SpreadTo{name_of(stage)}" >> beam.Reshuffle()
            flowing = spread | name_of(stage) >> graph[stage]
    return flowing


def name_of(stage: Stage) -> str:
    """Returns the stage's name in the graph."""
    return stage.value.capitalize()
