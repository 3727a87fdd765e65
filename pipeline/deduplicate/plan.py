"""The plan of the search for duplicates: which rows there are, and whether they are done already.

Free of Beam, as the search is.
"""

import logging
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset.commits import deciding_settings, is_committed, stage_fingerprint
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import committed_fingerprint, open_read
from scoring.config import DeduplicateConfig

logger = logging.getLogger(__name__)

NOT_DECIDING = frozenset({"device", "accelerator", "memory_bytes", "threads"})
EXACT_BYTES_PER_ROW = 64


@dataclass(frozen=True, slots=True)
class ShardSurvey:
    """What the plan needs to know of a shard."""

    shard: int
    rows: int
    width: int
    """Numbers in an embedding; 0 if none is stored."""
    fingerprint: str
    has_thumbnails: bool = False
    """Whether the fetched table holds small copies of the images."""


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How the rows of all shards are searched."""

    fingerprint: str
    folder: str
    shards: tuple[int, ...]
    offsets: tuple[int, ...]
    """Number of each shard's first row, and in the end the number of all rows."""
    width: int
    """Numbers in an embedding; 0 if near-duplicates are not searched."""
    is_done: bool
    """Whether every shard's result is committed already."""
    must_look_alike: bool = False
    """Whether near-duplicates get a second look."""
    cell_groups: int = 0
    """Tasks that the cells are divided among."""

    @property
    def count(self) -> int:
        """Number of rows in all shards."""
        return self.offsets[-1]

    @property
    def hash_groups(self) -> int:
        """Tasks that the content hashes are divided among."""
        return min(65_536, max(1, math.ceil(self.count * EXACT_BYTES_PER_ROW / (1 << 26))))

    def first_row(self, shard: int) -> int:
        """Returns the number of the shard's first row."""
        return self.offsets[self.shards.index(shard)]


@dataclass(frozen=True, slots=True)
class SearchTask:
    """A part of the search."""

    kind: Literal["near", "exact"]
    group: int


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
    with open_read(layout.fetched(shard, "parquet")) as file:
        has_thumbnails = "thumbnail" in pq.read_schema(file).names
    return ShardSurvey(shard, rows, width, fingerprint, has_thumbnails)


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
    must_look_alike = is_near and config.look_difference < 255 and _are_there_thumbnails(surveys)
    left_out = NOT_DECIDING if must_look_alike else {*NOT_DECIDING, "look_difference"}
    fingerprint = stage_fingerprint(
        Stage.DEDUPLICATE,
        deciding_settings(config, leave_out=sorted(left_out)),
        [f"{survey.shard}:{survey.fingerprint}" for survey in surveys],
    )
    return SearchPlan(
        fingerprint=fingerprint,
        folder=f"{search_folder(layout)}/{fingerprint}",
        shards=tuple(survey.shard for survey in surveys),
        offsets=(0, *np.cumsum([survey.rows for survey in surveys]).tolist()),
        width=widths.pop() if is_near else 0,
        must_look_alike=must_look_alike,
        is_done=all(
            is_committed(
                layout.unique(survey.shard),
                kept_fingerprint(fingerprint, survey.fingerprint),
            )
            for survey in surveys
        ),
    )


def _are_there_thumbnails(surveys: list[ShardSurvey]) -> bool:
    """Returns whether any shard has thumbnails; says so if some do not."""
    lacking = [survey.shard for survey in surveys if survey.rows and not survey.has_thumbnails]
    if lacking:
        logger.warning(
            "the images of %d shards (first %05d) were fetched before thumbnails were kept: their "
            "near-duplicates are told by embeddings alone. To fetch them anew: --redo fetch",
            len(lacking),
            lacking[0],
        )
    return any(survey.rows and survey.has_thumbnails for survey in surveys)


def search_folder(layout: DatasetLayout) -> str:
    """Returns the folder of the files that the search leaves behind while it runs."""
    return f"{layout.run}/deduplicate"


def kept_fingerprint(groups: str, scored: str) -> str:
    """Returns the fingerprint of a shard's unique pairs.

    Args:
        groups: fingerprint of the search.
        scored: fingerprint of the shard's scores.
    """
    return stage_fingerprint(Stage.DEDUPLICATE, {"groups": groups}, [scored])
