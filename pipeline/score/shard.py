"""A scored shard: how it is made from a fetched one, and what it says of its own making.

Free of Beam, so that a machine with a GPU needs no more than a model's libraries to score.
"""

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.captions import caption_choices
from pipeline.dataset.commits import deciding_settings, is_committed, stage_fingerprint
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.dataset.tars import read_images
from pipeline.dataset.worktimes import timed
from schemas.columns import file_metadata, read_table, write_table
from schemas.errors import DatasetError, RejectReason, SampleRejected
from schemas.memory import large_imports
from schemas.records import FETCHED_SCHEMA, PAIR_COLUMNS, SCORED_SCHEMA, CaptionedImage, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint, open_read, remove
from scoring.config import ScoreConfig
from scoring.devices import with_precision

if TYPE_CHECKING:
    from scoring.clip.scorer import ClipScorer, Scores

OF_SIGNALS = ("signals", "itm_prompt", "itm_batch_size", "itm_trust_remote_code")
NOT_DECIDING = ("model", "pretrained", "device", "accelerator", "decode_threads", *OF_SIGNALS)
"""Settings that the fingerprint leaves out: the model's identity says more than its path, and each
signal has a fingerprint of its own."""


def score_shard(layout: DatasetLayout, shard: int, config: ScoreConfig) -> None:
    """Scores the pairs of a fetched shard and commits the table, unless it already stands.

    Raises:
        DatasetError: if the shard is not fetched, or is not what its table says.
        ConfigError: if the model cannot be loaded.
    """
    # torch and open_clip take seconds to start: a job without scores does not wait for them.
    with large_imports():
        from scoring.clip.scorer import shared_scorer
    defaults = ScoreConfig()
    of_signals = {name: getattr(defaults, name) for name in OF_SIGNALS}
    config = with_precision(dataclasses.replace(config, **of_signals))
    marker = layout.scored(shard)
    fingerprint = score_fingerprint(layout, shard, config)
    if is_committed(marker, fingerprint):
        return
    remove(marker)
    scorer = shared_scorer(config)
    with timed(layout, Stage.SCORE, "score") as work:
        work.device = scorer.device.type
        work.rows = _score_and_commit(layout, shard, scorer, config, fingerprint)


def _score_and_commit(
    layout: DatasetLayout, shard: int, scorer: "ClipScorer", config: ScoreConfig, fingerprint: str
) -> int:
    """Scores the pairs of a shard and commits the table; returns how many pairs there were."""
    with open_read(layout.fetched(shard, "parquet")) as file:
        pairs = read_table(file, FETCHED_SCHEMA, [*PAIR_COLUMNS, "image_format"])
    keys = pairs["key"].to_pylist()
    with ShardProgress(layout, Stage.SCORE, shard, len(keys)) as progress:
        images = read_images(layout, shard, keys, pairs["image_format"].to_pylist())
        scores = scorer.score(images, caption_choices(pairs), lambda done: progress.update(done, 0))
        progress.took({"feed": scores.took.feed.seconds, "model": scores.took.model})
        is_finite = np.isfinite(scores.clip_score)
        rejections = _reject(pairs.filter(pa.array(~is_finite)))
        write_rejections(layout, Stage.SCORE, shard, rejections, fingerprint)
        table = _scored_table(keys, scores, is_finite, config.keep_embeddings)
        with commit_file(layout.scored(shard)) as out:
            write_table(table, out, _provenance(scorer, fingerprint))
        progress.update(table.num_rows, len(rejections))
    return len(keys)


def score_fingerprint(layout: DatasetLayout, shard: int, config: ScoreConfig) -> str:
    """Returns the fingerprint of a shard's scores: its images, the model and how it is used.

    Raises:
        DatasetError: if the shard is not fetched.
    """
    from scoring.clip.checkpoints import deciding_identity
    from scoring.clip.scorer import model_identity

    marker = layout.fetched(shard, "_stats.json")
    upstream = committed_fingerprint(marker)
    if upstream is None:
        raise DatasetError(f"{marker} is missing: fetch shard {shard} before it is scored")
    config = with_precision(config)
    settings = {
        **deciding_settings(config, leave_out=NOT_DECIDING),
        "identity": deciding_identity(model_identity(config)),
    }
    return stage_fingerprint(Stage.SCORE, settings, [upstream])


def _provenance(scorer: "ClipScorer", fingerprint: str) -> dict[str, str]:
    """Returns what the scores of a file can be reproduced from."""
    return {
        "fingerprint": fingerprint,
        "model": json.dumps(scorer.identity, sort_keys=True),
        "score_config": json.dumps(deciding_settings(scorer.config, OF_SIGNALS), sort_keys=True),
        "fitted_batch_size": str(scorer.fitted_batch_size),
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """What the scores of a shard were made with."""

    model: dict[str, str]
    """Identity of the model."""
    config: ScoreConfig
    fitted_batch_size: int
    """Images that went through the model at once."""


def read_provenance(layout: DatasetLayout, shard: int) -> Provenance:
    """Returns what the scores of a shard were made with, from the file itself.

    Raises:
        DatasetError: if the shard is not scored.
    """
    path = layout.scored(shard)
    try:
        with open_read(path) as file:
            metadata = file_metadata(pq.read_schema(file))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: the shard is not scored") from error
    if "model" not in metadata or "score_config" not in metadata:
        raise DatasetError(f"{path} does not say which model made its scores: score it again")
    return Provenance(
        model=json.loads(metadata["model"]),
        config=ScoreConfig(**json.loads(metadata["score_config"])),
        fitted_batch_size=int(metadata["fitted_batch_size"]),
    )


def _reject(rows: pa.Table) -> list[Rejection]:
    rejected = SampleRejected(RejectReason.SCORE_NOT_FINITE, "the model's output is not finite")
    return [
        rejection(CaptionedImage(**row), rejected) for row in rows.select(PAIR_COLUMNS).to_pylist()
    ]


def _scored_table(
    keys: list[str], scores: "Scores", is_kept: npt.NDArray[np.bool_], keeps_embeddings: bool
) -> pa.Table:
    kept = np.flatnonzero(is_kept)
    columns = [
        pa.array(keys, pa.string()).take(pa.array(kept)),
        pa.array(scores.clip_score[kept], pa.float32()),
        pa.array(scores.caption_index[kept], pa.int32()),
        pa.array(scores.is_truncated[kept], pa.bool_()),
        _embedding_column(scores.image_embedding[kept], keeps_embeddings),
        _embedding_column(scores.text_embedding[kept], keeps_embeddings),
    ]
    return pa.Table.from_arrays(columns, schema=SCORED_SCHEMA)


def _embedding_column(embedding: npt.NDArray[np.float32], is_kept: bool) -> pa.Array:
    count, width = embedding.shape
    if not is_kept:
        return pa.nulls(count, pa.list_(pa.float16()))
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(embedding.astype(np.float16).ravel()))
