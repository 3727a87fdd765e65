"""The file of the levels' edges: how it is written, read again, and compared with new data."""

import dataclasses
import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.derivation import read_derivation
from schemas.errors import ConfigError, DatasetError
from schemas.manifest import LevelDrift
from schemas.shards import DatasetLayout
from schemas.storage import commit_text, exists, open_read
from scoring.config import LevelConfig
from scoring.levels.edges import LevelEdges, population_stability_index
from scoring.levels.positions import position_of, score_of

logger = logging.getLogger(__name__)

ALL_SOURCES = ""
"""Name of the group of all pairs, whatever their source."""

NAMES_LISTED = 5
"""How many sources a message names before it counts the others."""


@dataclass(frozen=True, slots=True)
class LevelTally:
    """How many pairs of a group have which level, and between which scores they lie."""

    counts: NDArray[np.int64]
    lowest: NDArray[np.float32]
    """Of each level; infinity where it is empty."""
    highest: NDArray[np.float32]
    """Of each level; minus infinity where it is empty."""
    left_out: int
    """Pairs of no level: below the cut or the minimum score."""

    @classmethod
    def of(
        cls, levels: NDArray[np.int8], score: NDArray[np.float32], num_levels: int
    ) -> "LevelTally":
        """Returns the tally of some pairs; level 0 is of those that are left out."""
        counts = np.bincount(levels, minlength=num_levels + 1).astype(np.int64)
        lowest = np.full(num_levels + 1, np.inf, np.float32)
        highest = np.full(num_levels + 1, -np.inf, np.float32)
        np.minimum.at(lowest, levels, score)
        np.maximum.at(highest, levels, score)
        return cls(counts[1:], lowest[1:], highest[1:], int(counts[0]))

    def plus(self, other: "LevelTally") -> "LevelTally":
        """Returns the tally of both."""
        return LevelTally(
            self.counts + other.counts,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
            self.left_out + other.left_out,
        )


@dataclass(frozen=True, slots=True)
class SavedEdges:
    """What `levelled/edges.json` says."""

    fingerprint: str
    num_levels: int
    groups: dict[str, LevelEdges]
    """By source; of all pairs under `ALL_SOURCES`."""
    by: str = "clip_score"
    """What the pairs are ranked by."""
    is_per_source: bool = False
    """Whether each source has edges of its own, beside which the overall ones only stand in."""
    cut_counts: dict[str, list[int]] = field(default_factory=dict)
    """By the same names, the pairs that they levelled in the data that they were cut in."""
    cut_left_out: dict[str, int | None] = field(default_factory=dict)
    """By the same names, the pairs of that data that got no level; None in older files."""

    def group_of(self, source: str) -> str:
        """Returns whose edges level a source: its own, or else those of all pairs.

        Raises:
            ConfigError: if there are neither.
        """
        group = source if source in self.groups else ALL_SOURCES
        if group not in self.groups:
            raise ConfigError(
                f"levels.edges_from has no edges for {source!r}, only for {_listed(self.groups)}, "
                "and no overall ones, which older versions did not save: name the input files as "
                "before, or level that dataset anew (--redo level)"
            )
        return group


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
        raise ConfigError(f"levels.edges_from: there is no {path}; {_where_edges_are(config)}")
    saved = read_edges(path)
    if saved.num_levels != config.num_levels:
        raise ConfigError(
            f"levels.edges_from: {path} has {saved.num_levels} levels, levels.num_levels is "
            f"{config.num_levels}; make them equal"
        )
    if saved.by != config.by:
        raise ConfigError(
            f"levels.edges_from: the edges in {path} were cut by {saved.by}, levels.by is "
            f"{config.by}; make them equal"
        )
    if saved.is_per_source != config.per_source:
        raise ConfigError(
            f"levels.per_source is {config.per_source}, but the edges in {path} were cut the "
            "other way; make them equal"
        )
    return saved


def _where_edges_are(config: LevelConfig) -> str:
    """Returns what to name in place of a dataset without edges."""
    folder = str(config.edges_from)
    made = None if folder.endswith(".json") else read_derivation(DatasetLayout(folder))
    if made is None:
        return "name a dataset with levels"
    if made.settings.get("cut_levels") is not None:
        return (
            f"{made.command} cut its levels anew, which leaves no edges: name a dataset that "
            "`curate` or `level` cut"
        )
    parents = ", ".join(parent.folder for parent in made.parents)
    return f"it was made by {made.command} and has the levels of what it was made from: {parents}"


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
        # Older files have no `cut_counts`: then the edges count as cut in their own data.
        cut_counts = {
            str(group["source"] or ALL_SOURCES): group.get("cut_counts", group["counts"])
            for group in values["groups"]
        }
        cut_left_out = {
            str(group["source"] or ALL_SOURCES): group.get("cut_left_out")
            for group in values["groups"]
        }
        return SavedEdges(
            fingerprint=str(values["fingerprint"]),
            num_levels=num_levels,
            groups=groups,
            by=str(values["settings"].get("by", "clip_score")),
            is_per_source=bool(values["settings"]["per_source"]),
            cut_counts=cut_counts,
            cut_left_out=cut_left_out,
        )
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
        tallies: by source, or of all pairs.
        old: where the edges come from, if they were not cut in this data.
    """
    empty = LevelTally.of(np.empty(0, np.int8), np.empty(0, np.float32), saved.num_levels)
    total = empty
    levelled = dict.fromkeys(saved.groups, empty)
    for source, tally in tallies.items():
        total = total.plus(tally)
        group = saved.group_of(source)
        levelled[group] = levelled[group].plus(tally)
    strangers = sorted(tallies.keys() - saved.groups.keys())
    if strangers:
        logger.warning(
            "levels.edges_from has no edges for %s: the overall ones were used", _listed(strangers)
        )
    groups = []
    name = "clip_score" if settings.get("by") is None else "value"
    for source, edges in sorted(saved.groups.items()):
        counts, left_out = levelled[source].counts.tolist(), levelled[source].left_out
        groups.append(
            {
                "source": source or None,
                "cut": _json(edges.cut or None, name),
                "edges": [_json(edge, name) for edge in edges.edges],
                "counts": counts,
                "left_out": left_out,
                "cut_counts": counts if old is None else old.cut_counts[source],
                "cut_left_out": left_out if old is None else old.cut_left_out[source],
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
        "sources_without_edges": strangers,
        "drift": None if old is None else dataclasses.asdict(_drift(old, total)),
    }
    commit_text(path, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _drift(old: SavedEdges, total: LevelTally) -> LevelDrift:
    """Returns how the data moved; what is left out counts as a class if anything is, or was."""
    nothing = [0] * old.num_levels
    expected = np.array([nothing, *old.cut_counts.values()], np.int64).sum(axis=0)
    known = [count for count in old.cut_left_out.values() if count is not None]
    left_out = sum(known)
    before, now = expected, total.counts
    has_class = len(known) == len(old.groups) and left_out + total.left_out > 0
    if has_class:
        before, now = np.append(before, left_out), np.append(now, total.left_out)
    elif total.left_out:
        logger.warning(
            "levels.edges_from does not say how many pairs were left out where the edges were "
            "cut: the drift is that of the levels alone"
        )
    return LevelDrift(
        expected_counts=expected.tolist(),
        counts=total.counts.tolist(),
        expected_left_out=left_out if has_class else None,
        left_out=total.left_out if has_class else None,
        population_stability_index=population_stability_index(before, now),
    )


def _listed(sources: Collection[str]) -> str:
    """Returns the first of the names, and how many more there are."""
    names = sorted(sources)
    more = f" and {len(names) - NAMES_LISTED} more" if len(names) > NAMES_LISTED else ""
    return (", ".join(names[:NAMES_LISTED]) or "none") + more


def _json(edge: int | None, name: str) -> dict[str, float | str] | None:
    """Returns an edge as a score, or the value of a signal, and a hash, both exact."""
    if edge is None:
        return None
    return {name: score_of(edge), "key_hash": f"{edge & ((1 << 64) - 1):016x}"}


def _position(value: dict[str, Any] | None) -> int | None:
    if value is None:
        return None
    score = value["clip_score"] if "clip_score" in value else value["value"]
    return position_of(float(score), int(str(value["key_hash"]), 16))
