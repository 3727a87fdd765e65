"""The file of the levels' edges: how it is written, read again, and compared with new data."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.storage import commit_text, exists, open_read, read_json
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import LevelDrift
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig
from scoring.level_positions import position_of, score_of
from scoring.levels import LevelEdges, population_stability_index

ALL_SOURCES = ""
"""Name of the one group of pairs where the levels are not cut for each source."""


@dataclass(frozen=True, slots=True)
class LevelTally:
    """How many pairs of a group have which level, and between which scores they lie."""

    counts: NDArray[np.int64]
    lowest: NDArray[np.float32]
    """Of each level; infinity where it is empty."""
    highest: NDArray[np.float32]
    """Of each level; minus infinity where it is empty."""

    @classmethod
    def of(
        cls, levels: NDArray[np.int8], score: NDArray[np.float32], num_levels: int
    ) -> "LevelTally":
        """Returns the tally of some pairs; those of level 0 are left out."""
        counts = np.bincount(levels, minlength=num_levels + 1)[1:].astype(np.int64)
        lowest = np.full(num_levels + 1, np.inf, np.float32)
        highest = np.full(num_levels + 1, -np.inf, np.float32)
        np.minimum.at(lowest, levels, score)
        np.maximum.at(highest, levels, score)
        return cls(counts, lowest[1:], highest[1:])

    def plus(self, other: "LevelTally") -> "LevelTally":
        """Returns the tally of both."""
        return LevelTally(
            self.counts + other.counts,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
        )


@dataclass(frozen=True, slots=True)
class SavedEdges:
    """What `levelled/edges.json` says."""

    fingerprint: str
    num_levels: int
    groups: dict[str, LevelEdges]
    """By source; of all pairs under `ALL_SOURCES`."""
    cut_counts: dict[str, list[int]] = field(default_factory=dict)
    """Pairs in each level of the data that the edges were cut in, by the same names."""


def edges_path(config: LevelConfig) -> str | None:
    """Returns the file that old edges are taken from, if they are."""
    if config.edges_from is None or config.edges_from.endswith(".json"):
        return config.edges_from
    return DatasetLayout(config.edges_from).edges


def read_old_edges(config: LevelConfig) -> SavedEdges | None:
    """Returns the edges that the configuration names; None if new ones are to be cut.

    Raises:
        ConfigError: if they are not there or do not fit the configuration.
    """
    path = edges_path(config)
    if path is None:
        return None
    if not exists(path):
        raise ConfigError(f"levels.edges_from: there is no {path}; name a dataset with levels")
    saved = read_edges(path)
    if saved.num_levels != config.num_levels:
        raise ConfigError(
            f"levels.edges_from: {path} has {saved.num_levels} levels, levels.num_levels is "
            f"{config.num_levels}; make them equal"
        )
    if (ALL_SOURCES in saved.groups) == config.per_source:
        raise ConfigError(
            f"levels.per_source is {config.per_source}, but the edges in {path} were cut the "
            "other way; make them equal"
        )
    return saved


def read_edges(path: str) -> SavedEdges:
    """Returns what `save_edges` wrote.

    Raises:
        DatasetError: if it is no file of edges.
    """
    with open_read(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
        num_levels = int(values["num_levels"])
        groups = {
            str(group["source"] or ALL_SOURCES): LevelEdges(
                num_levels,
                _position(group["cut"]) or 0,
                tuple(_position(edge) for edge in group["edges"]),
            )
            for group in values["groups"]
        }
        # Files of before have no `cut_counts`: then the edges count as cut in their own data.
        cut_counts = {
            str(group["source"] or ALL_SOURCES): group.get("cut_counts", group["counts"])
            for group in values["groups"]
        }
        return SavedEdges(str(values["fingerprint"]), num_levels, groups, cut_counts)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no file of level edges: {error!r}") from error


def save_edges(
    path: str,
    saved: SavedEdges,
    tallies: dict[str, LevelTally],
    settings: dict[str, Any],
    old: SavedEdges | None,
) -> None:
    """Writes the edges with what they make of the data.

    Args:
        tallies: by the names of the groups.
        old: where the edges come from, if they were not cut in this data.
    """
    empty = LevelTally.of(np.empty(0, np.int8), np.empty(0, np.float32), saved.num_levels)
    total = empty
    for tally in tallies.values():
        total = total.plus(tally)
    groups = []
    for source, edges in sorted(saved.groups.items()):
        counts = tallies.get(source, empty).counts.tolist()
        groups.append(
            {
                "source": source or None,
                "cut": _json(edges.cut or None),
                "edges": [_json(edge) for edge in edges.edges],
                "counts": counts,
                "cut_counts": counts if old is None else old.cut_counts[source],
            }
        )
    values = {
        "fingerprint": saved.fingerprint,
        "num_levels": saved.num_levels,
        "settings": settings,
        "count": int(total.counts.sum()),
        "levels": [
            {
                "level": level + 1,
                "count": int(total.counts[level]),
                "min_score": float(total.lowest[level]) if total.counts[level] else None,
                "max_score": float(total.highest[level]) if total.counts[level] else None,
            }
            for level in range(saved.num_levels)
        ],
        "groups": groups,
        "drift": None if old is None else dataclasses.asdict(_drift(old, total)),
    }
    commit_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _drift(old: SavedEdges, total: LevelTally) -> LevelDrift:
    nothing = [0] * old.num_levels
    expected = np.array([nothing, *old.cut_counts.values()], np.int64).sum(axis=0)
    return LevelDrift(
        expected_counts=expected.tolist(),
        counts=total.counts.tolist(),
        population_stability_index=population_stability_index(expected, total.counts),
    )


def read_drift(layout: DatasetLayout) -> LevelDrift | None:
    """Returns how a dataset differs from the one that its edges were cut in.

    None if they were cut in it, or it has no levels yet.
    """
    if not exists(layout.edges):
        return None
    drift = read_json(layout.edges)["drift"]
    return None if drift is None else LevelDrift(**drift)


def drift_rows(drift: LevelDrift | None) -> list[dict[str, Any]]:
    """Returns, for each level, its samples and their share where the edges were cut and here."""
    if drift is None:
        return []
    expected_total, total = sum(drift.expected_counts) or 1, sum(drift.counts) or 1
    return [
        {
            "level": level,
            "expected": expected,
            "expected_ratio": expected / expected_total,
            "count": count,
            "ratio": count / total,
        }
        for level, (expected, count) in enumerate(
            zip(drift.expected_counts, drift.counts, strict=True), start=1
        )
    ]


def _json(edge: int | None) -> dict[str, float | str] | None:
    """Returns an edge as a score and a hash, both exact."""
    if edge is None:
        return None
    return {"clip_score": score_of(edge), "key_hash": f"{edge & ((1 << 64) - 1):016x}"}


def _position(value: dict[str, Any] | None) -> int | None:
    if value is None:
        return None
    return position_of(float(value["clip_score"]), int(str(value["key_hash"]), 16))
