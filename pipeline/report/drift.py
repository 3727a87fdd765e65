"""How a dataset differs from the one that its edges were cut in, as the file of the edges says."""

from typing import Any

from schemas.manifest import LevelDrift
from schemas.shards import DatasetLayout
from schemas.storage import exists, read_json


def read_drift(layout: DatasetLayout) -> LevelDrift | None:
    """Returns how a dataset differs from the one that its edges were cut in.

    None if they were cut in it, or it has no levels yet.
    """
    if not exists(layout.edges):
        return None
    drift = read_json(layout.edges)["drift"]
    return None if drift is None else LevelDrift(**drift)


def drift_rows(drift: LevelDrift | None) -> list[dict[str, Any]]:
    """Returns, for each class, its samples and their share where the edges were cut and here.

    The classes are the levels and, first, what is below the cut, where the drift counts it.
    """
    if drift is None:
        return []
    names: list[int | str] = list(range(1, len(drift.counts) + 1))
    expected_counts, counts = drift.expected_counts, drift.counts
    if drift.expected_left_out is not None and drift.left_out is not None:
        names = ["below the cut", *names]
        expected_counts = [drift.expected_left_out, *expected_counts]
        counts = [drift.left_out, *counts]
    expected_total, total = sum(expected_counts) or 1, sum(counts) or 1
    return [
        {
            "level": name,
            "expected": expected,
            "expected_ratio": expected / expected_total,
            "count": count,
            "ratio": count / total,
        }
        for name, expected, count in zip(names, expected_counts, counts, strict=True)
    ]
