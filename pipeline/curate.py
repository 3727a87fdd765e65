"""The whole job: read this first.

Only shard numbers flow between the stages. What a stage makes of a shard lies in the dataset's
folder, at the paths of `schemas.shards.DatasetLayout`; a stage that finds it there, made under the
same settings from the same input, leaves it as it is. So a job that was stopped goes on where it
was, and each stage can be run alone.
"""

from collections.abc import Sequence

import apache_beam as beam

from pipeline.config import CurationConfig
from pipeline.dataset.deny import DenyFiles
from pipeline.deduplicate.plan import NOT_DECIDING as DEDUPLICATE_NOT_DECIDING
from pipeline.fetch.retry import RetrySession
from pipeline.fetch.shard import NOT_DECIDING as FETCH_NOT_DECIDING
from pipeline.fetch.transform import FetchShards
from pipeline.level.transform import AssignLevels
from pipeline.pack.transform import PackShards
from pipeline.read.inputs import InputFile
from pipeline.read.transform import ReadPairs
from pipeline.recaption.transform import RecaptionShards
from pipeline.score.shard import NOT_DECIDING as SCORE_NOT_DECIDING
from pipeline.score.transform import ScoreShards
from schemas.memory import large_imports
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
    inputs: Sequence[InputFile] = (),
    shards: Sequence[int] = (),
    retry: RetrySession | None = None,
) -> beam.PCollection[int]:
    """Returns the shards that the last of the stages gives: the whole graph.

    Args:
        stages: those to run, in their order and without gaps.
        inputs: where the pairs are, if `read` is among the stages.
        shards: the shards to start from, if it is not.
        retry: which images to ask for again, if any.
    """

    def through(
        flowing: beam.PCollection[int], stage: Stage, step: beam.PTransform
    ) -> beam.PCollection[int]:
        """Returns the shards behind a stage; those before it if the stage is not to run."""
        if stage not in stages:
            return flowing
        # Stages that a runner fuses would share a worker, and its GPU.
        spread = flowing | f"SpreadTo{name_of(stage)}" >> beam.Reshuffle()
        return spread | name_of(stage) >> step

    if Stage.READ in stages:
        pairs = pipeline | name_of(Stage.READ) >> ReadPairs(layout, config.read, inputs)
    else:
        pairs = pipeline | "Start" >> beam.Create(list(shards))
    denied = DenyFiles(urls=config.read.deny_urls, hosts=config.read.deny_hosts)
    fetched = through(pairs, Stage.FETCH, FetchShards(layout, config.fetch, retry, denied))
    scored = through(fetched, Stage.SCORE, ScoreShards(layout, config.score))
    unique = scored
    if Stage.DEDUPLICATE in stages:
        # torch and FAISS take seconds to start: only a job that searches waits for them.
        with large_imports():
            from pipeline.deduplicate.transform import KeepBestOfDuplicates
        step = KeepBestOfDuplicates(layout, config.deduplicate)
        unique = through(scored, Stage.DEDUPLICATE, step)
    levelled = through(unique, Stage.LEVEL, AssignLevels(layout, config.levels))
    write = RecaptionShards(layout, config.recaption, config.score)
    captioned = through(levelled, Stage.RECAPTION, write)
    pack = PackShards(layout, config.pack, config.is_scored, config.is_recaptioned)
    return through(captioned, Stage.PACK, pack)


def name_of(stage: Stage) -> str:
    """Returns the stage's name in the graph."""
    return stage.value.capitalize()
