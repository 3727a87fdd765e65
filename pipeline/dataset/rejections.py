"""The table of what a stage rejects."""

from collections.abc import Sequence
from typing import Any

from pipeline.dataset.deny import DENIED
from schemas.columns import table_from_records, write_table
from schemas.errors import RejectReason, SampleRejected
from schemas.records import REJECTION_SCHEMA, CaptionedImage, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file


def rejection(pair: CaptionedImage, rejected: SampleRejected, **more: Any) -> Rejection:
    """Returns the row of the rejection table for a pair.

    Args:
        more: `kept_key` or `clip_score`, where they are known.
    """
    values: dict[str, Any] = {"kept_key": None, "clip_score": None, **more}
    is_denied = rejected.reason in DENIED
    return Rejection(
        key=pair.key,
        url=None if is_denied else pair.url,
        caption=None if is_denied else pair.caption,
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
