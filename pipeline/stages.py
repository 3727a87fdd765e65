"""What all stages share: the fingerprint that guards a resume, and the table of rejections."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.storage import commit_file, committed_fingerprint
from schemas.columns import SCHEMA_VERSION, table_from_records, write_table
from schemas.errors import RejectReason, SampleRejected, Stage
from schemas.records import REJECTION_SCHEMA, CaptionedImage, Rejection
from schemas.shards import DatasetLayout
from scoring.config import DeduplicateConfig, ScoreConfig


def deciding_settings(config: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of a configuration that decide a stage's output.

    Args:
        leave_out: fields that change how the work is done but not what comes out.
    """
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in leave_out}


def stage_fingerprint(stage: Stage, settings: dict[str, Any], upstream: Sequence[str]) -> str:
    """Returns 32 hex digits that change with whatever can change a stage's output for a shard.

    Args:
        settings: the configuration that matters to the stage, the identity of a model with it.
        upstream: fingerprints of what the stage reads.
    """
    made_of = json.dumps(
        {
            "stage": stage.value,
            "settings": settings,
            "upstream": list(upstream),
            "schema_version": SCHEMA_VERSION,
        },
        sort_keys=True,
    )
    return hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()


def is_committed(marker: str, fingerprint: str) -> bool:
    """Returns whether the file that a stage writes last stands, with this fingerprint."""
    return committed_fingerprint(marker) == fingerprint


def on_accelerator(step: Any, config: ScoreConfig | DeduplicateConfig) -> Any:
    """Returns a step of the graph, asking for workers with a GPU where it must have one."""
    if config.device == "cuda":
        step = step.with_resource_hints(accelerator=config.accelerator)
    return step


def rejection(pair: CaptionedImage, rejected: SampleRejected, **more: Any) -> Rejection:
    """Returns the row of the rejection table for a pair.

    Args:
        more: `kept_key` or `clip_score`, where they are known.
    """
    values: dict[str, Any] = {"kept_key": None, "clip_score": None, **more}
    return Rejection(
        key=pair.key,
        url=pair.url,
        caption=pair.caption,
        source=pair.source,
        stage=rejected.reason.stage.value,
        reason=rejected.reason.value,
        is_retryable=rejected.reason.is_retryable,
        detail=rejected.detail,
        http_status=rejected.http_status,
        **values,
    )


def write_rejections(
    layout: DatasetLayout,
    stage: Stage,
    shard: int,
    rejections: Sequence[Rejection],
    fingerprint: str,
) -> None:
    """Commits the table of what a stage left out of a shard, also when it is empty."""
    table = table_from_records(list(rejections), REJECTION_SCHEMA)
    with commit_file(layout.rejected(stage, shard)) as file:
        write_table(table, file, {"fingerprint": fingerprint})


def count_reasons(rejections: Sequence[Rejection]) -> dict[str, int]:
    """Returns how many rejections there are of each reason, in the order of the reasons."""
    counts = {reason.value: 0 for reason in RejectReason}
    for row in rejections:
        counts[row.reason] += 1
    return {reason: count for reason, count in counts.items() if count}
