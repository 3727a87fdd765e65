"""The levels of a shard's unique pairs: counted, tallied and written."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.commits import is_committed, stage_fingerprint
from pipeline.dataset.edges import (
    ALL_SOURCES,
    LevelTally,
    SavedEdges,
    read_edges,
    read_old_edges,
    save_edges,
)
from pipeline.dataset.fetched_rows import fetched_pairs, fetched_rows
from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.progress import ShardProgress, begin_step, end_piece
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.dataset.worktimes import timed
from pipeline.level.ranks import RankPlan, read_values
from pipeline.level.signals import (
    level_settings,
    may_stay,
    refuse_nan,
    signal_fingerprint,
    signal_rows,
)
from schemas.columns import read_table, write_table
from schemas.errors import DatasetError, RejectReason, SampleRejected
from schemas.records import (
    LEVELLED_SCHEMA,
    UNIQUE_SCHEMA,
    Rejection,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint, open_read, remove
from scoring.config import LevelConfig
from scoring.levels.edges import (
    EdgeSearch,
    Histogram,
    count_cells,
    levels_from_edges,
    merge_histograms,
    refine,
)
from scoring.levels.ranks import parse_rank_mean


@dataclass(frozen=True, slots=True)
class LevelSearch:
    """What is known of the edges after some passes over the shards."""

    fingerprint: str
    """Of the edges: the settings and all unique shards."""
    searches: dict[str, EdgeSearch]
    """By group: all pairs under one name and, if asked for, each source."""
    known: SavedEdges | None
    """Edges that need no search: those of a former run, or of another dataset."""
    is_saved: bool
    """Whether this dataset's file of edges already stands."""
    passes_done: int = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to find."""
        searches = self.searches.values()
        return self.known is not None or (self.passes_done > 0 and all(s.is_done for s in searches))

    @property
    def edges(self) -> SavedEdges:
        """The edges, once the search is done."""
        if self.known is not None:
            return replace(self.known, fingerprint=self.fingerprint)
        found = {group: search.edges for group, search in self.searches.items()}
        num_levels = next((edges.num_levels for edges in found.values()), 0)
        return SavedEdges(self.fingerprint, num_levels, found)


def add_histograms(first: Histogram, second: Histogram) -> Histogram:
    """Returns the sum of two histograms of one pass."""
    return merge_histograms([first, second])


def unique_fingerprint(shard: int, layout: DatasetLayout, config: LevelConfig) -> tuple[int, str]:
    """Returns the shard with the fingerprint of its unique pairs and of the signals that decide.

    Raises:
        DatasetError: if they are not there.
        ConfigError: if a signal is not there.
    """
    fingerprint = committed_fingerprint(layout.unique(shard))
    if fingerprint is None:
        raise DatasetError(f"{layout.unique(shard)} is missing: deduplicate the dataset first")
    return shard, fingerprint + signal_fingerprint(layout, shard, config)


def edges_fingerprint(
    shards: list[tuple[int, str]], config: LevelConfig, old: SavedEdges | None
) -> str:
    """Returns the fingerprint of the edges: the settings and all unique shards."""
    settings = level_settings(config, leave_out=("edges_from",))
    groups = None if old is None else {name: repr(edges) for name, edges in old.groups.items()}
    upstream = [f"{shard}:{fingerprint}" for shard, fingerprint in sorted(shards)]
    return stage_fingerprint(Stage.LEVEL, {**settings, "old_edges": groups}, upstream)


def levels_fingerprint(edges: str, upstream: str) -> str:
    """Returns the fingerprint of a shard's levels.

    Args:
        edges: fingerprint of the edges.
        upstream: fingerprint of the shard's unique pairs.
    """
    return stage_fingerprint(Stage.LEVEL, {"edges": edges}, [upstream])


def plan_ranks(
    shards: list[tuple[int, str]], layout: DatasetLayout, config: LevelConfig
) -> RankPlan:
    """Returns what the ranking of all shards has to do: nothing where all levels stand."""
    fingerprint = edges_fingerprint(shards, config, None)
    return RankPlan(
        fingerprint=fingerprint,
        shards=tuple(shard for shard, _ in sorted(shards)),
        is_done=is_committed(layout.edges, fingerprint)
        and all(
            is_committed(layout.levelled(shard), levels_fingerprint(fingerprint, upstream))
            for shard, upstream in shards
        ),
    )


def begin_search(
    shards: list[tuple[int, str]], layout: DatasetLayout, config: LevelConfig
) -> LevelSearch:
    """Returns the search before its first pass, or with the edges if they are known.

    Args:
        shards: all shards of the dataset with the fingerprints of their unique pairs.

    Raises:
        ConfigError: if old edges are asked for and are not there or do not fit.
    """
    old = read_old_edges(config)
    fingerprint = edges_fingerprint(shards, config, old)
    if is_committed(layout.edges, fingerprint):
        return LevelSearch(fingerprint, {}, read_edges(layout.edges), is_saved=True)
    remove(layout.edges)
    if old is None:
        begin_step(layout, Stage.LEVEL, "count", len(shards))
    begin_step(layout, Stage.LEVEL, "tally", len(shards))
    return LevelSearch(fingerprint, {}, old, is_saved=False)


def count_shard(
    shard: int, layout: DatasetLayout, config: LevelConfig, search: LevelSearch
) -> dict[str, Histogram]:
    """Returns the shard's histogram of the next pass for each group that still needs it."""
    counts: dict[str, Histogram] = {}
    if not search.is_done:
        with timed(layout, Stage.LEVEL, f"count {search.passes_done + 1}") as work:
            counts, work.rows = _histograms(shard, layout, config, search)
    if search.known is None and search.passes_done == 0:  # later ones have little left to find
        end_piece(layout, Stage.LEVEL, "count", shard)
    return counts


def _histograms(
    shard: int, layout: DatasetLayout, config: LevelConfig, search: LevelSearch
) -> tuple[dict[str, Histogram], int]:
    """Returns the histogram of each group that still needs one, and the rows of the shard."""
    start = EdgeSearch(config.num_levels, config.top_fraction)
    unique = read_scores(layout, shard, config, search.fingerprint)
    counts = {}
    # Beside those of the sources, overall edges are found: new data may have other sources.
    groups = group_rows(layout, shard, config, unique) | {ALL_SOURCES: np.arange(len(unique.keys))}
    for group, rows in groups.items():
        group_search = search.searches.get(group, start)
        if group_search.is_done:
            continue
        levelled = rows[unique.may_stay[rows]]
        hashes = RowHashes(unique.keys, levelled)
        counts[group] = count_cells(group_search, unique.value[levelled], hashes)
    return counts, len(unique.keys)


def refine_all(
    counts: dict[str, Histogram], config: LevelConfig, search: LevelSearch
) -> LevelSearch:
    """Returns what is known once a pass over all shards has found `counts`."""
    if search.is_done:
        return search
    start = EdgeSearch(config.num_levels, config.top_fraction)
    searches = dict(search.searches)
    for group in sorted(counts):
        searches[group] = refine(searches.get(group, start), counts[group])
    return replace(search, searches=searches, passes_done=search.passes_done + 1)


def tally_shard(
    shard: int, layout: DatasetLayout, config: LevelConfig, search: LevelSearch
) -> dict[str, LevelTally]:
    """Returns how many pairs of the shard have which level, for each group."""
    if search.is_saved:
        return {}
    with timed(layout, Stage.LEVEL, "tally") as work:
        unique = read_scores(layout, shard, config, search.fingerprint)
        levels = levels_of(layout, shard, config, search.edges, unique)
        tallies = {
            group: LevelTally.of(levels[rows], unique.clip_score[rows], config.num_levels)
            for group, rows in group_rows(layout, shard, config, unique).items()
        }
        work.rows = len(unique.keys)
    end_piece(layout, Stage.LEVEL, "tally", shard)
    return tallies


def save_found_edges(
    tallies: dict[str, LevelTally],
    layout: DatasetLayout,
    config: LevelConfig,
    search: LevelSearch,
) -> SavedEdges:
    """Returns the edges, saved with what they make of the data."""
    edges = replace(search.edges, num_levels=config.num_levels, is_per_source=config.per_source)
    if not search.is_saved:
        settings = level_settings(config)
        save_edges(layout.edges, edges, tallies, settings, read_old_edges(config))
    return edges


def level_shard(shard: int, layout: DatasetLayout, config: LevelConfig, edges: SavedEdges) -> int:
    """Returns the shard once the levels of its unique pairs are committed."""
    _, upstream = unique_fingerprint(shard, layout, config)
    fingerprint = levels_fingerprint(edges.fingerprint, upstream)
    marker = layout.levelled(shard)
    if is_committed(marker, fingerprint):
        return shard
    remove(marker)
    with timed(layout, Stage.LEVEL, "assign") as work:
        work.rows = _level_and_commit(layout, shard, config, edges, fingerprint)
    return shard


def _level_and_commit(
    layout: DatasetLayout, shard: int, config: LevelConfig, edges: SavedEdges, fingerprint: str
) -> int:
    """Levels the unique pairs of a shard and commits them; returns how many there were."""
    unique = read_scores(layout, shard, config, edges.fingerprint)
    with ShardProgress(layout, Stage.LEVEL, shard, len(unique.keys)) as progress:
        levels = levels_of(layout, shard, config, edges, unique)
        rejections = _rejections(layout, shard, config, unique, levels)
        write_rejections(layout, Stage.LEVEL, shard, rejections, fingerprint)
        kept = np.flatnonzero(levels)
        table = pa.table(
            {
                "key": unique.keys.take(kept),
                "clip_score": unique.clip_score[kept],
                "alignment_level": levels[kept],
            },
            schema=LEVELLED_SCHEMA,
        )
        with commit_file(layout.levelled(shard)) as file:
            write_table(table, file, {"fingerprint": fingerprint})
        progress.update(len(kept), len(rejections))
    return len(unique.keys)


@dataclass(frozen=True, slots=True)
class UniqueScores:
    """What levelling needs of a shard."""

    keys: pa.Array
    clip_score: NDArray[np.float32]
    value: NDArray[np.float32]
    """What the pairs are ranked by."""
    is_to_keep: NDArray[np.bool_]
    """Whether a pair fulfils `levels.keep`."""
    is_high_enough: NDArray[np.bool_]
    """Whether its score is not below the minimum."""

    @property
    def may_stay(self) -> NDArray[np.bool_]:
        """Which pairs are levelled, those below a cut of the ranks among them."""
        return self.is_to_keep & self.is_high_enough


class RowHashes:
    """The first 64 bits of the keys of some rows, read from their digits only when asked for.

    Few pairs tie with an edge; reading all keys would take longer than all else.
    """

    def __init__(self, keys: pa.Array, rows: NDArray[np.intp]) -> None:
        self._keys, self._rows = keys, rows

    def __getitem__(self, places: NDArray[np.intp], /) -> NDArray[np.uint64]:
        """Returns the hashes of those of the rows that stand at these places."""
        return key_hashes(self._keys.take(pa.array(self._rows[places])))


def read_scores(
    layout: DatasetLayout, shard: int, config: LevelConfig, fingerprint: str
) -> UniqueScores:
    """Returns the keys of a shard's unique pairs and what decides their levels.

    Args:
        fingerprint: of the edges.

    Raises:
        DatasetError: if the value of one that may stay is not a number.
    """
    with open_read(layout.unique(shard)) as file:
        table = read_table(file, UNIQUE_SCHEMA, ["key", "clip_score"])
    keys = table["key"].combine_chunks()
    score = table["clip_score"].to_numpy().astype(np.float32, copy=False)
    rows = signal_rows(layout, shard, config, keys, score)
    if parse_rank_mean(config.by) is None:
        value = rows[config.by].to_numpy().astype(np.float32, copy=False)
    else:
        value = read_values(layout, shard, fingerprint)
    unique = UniqueScores(keys, score, value, *may_stay(rows, config))
    refuse_nan(layout.scored(shard), config.by, value[unique.may_stay])
    return unique


def group_rows(
    layout: DatasetLayout, shard: int, config: LevelConfig, unique: UniqueScores
) -> dict[str, NDArray[np.intp]]:
    """Returns the rows of each group of pairs that is levelled by itself."""
    if not config.per_source:
        return {ALL_SOURCES: np.arange(len(unique.keys))}
    rows = fetched_rows(layout, shard, unique.keys, ["source"])
    sources = rows["source"].combine_chunks().dictionary_encode()
    codes = sources.indices.to_numpy()
    names = sources.dictionary.to_pylist()
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def levels_of(
    layout: DatasetLayout,
    shard: int,
    config: LevelConfig,
    edges: SavedEdges,
    unique: UniqueScores,
) -> NDArray[np.int8]:
    """Returns the levels of a shard's unique pairs, (n,); 0 for those that are left out.

    Raises:
        ConfigError: if there are no edges for one of the sources.
    """
    levels = np.zeros(len(unique.keys), np.int8)
    for group, rows in group_rows(layout, shard, config, unique).items():
        group_edges = edges.groups[edges.group_of(group)]
        hashes = RowHashes(unique.keys, rows)
        levels[rows] = levels_from_edges(unique.value[rows], hashes, group_edges)
    levels[~unique.may_stay] = 0
    return levels


def _rejections(
    layout: DatasetLayout,
    shard: int,
    config: LevelConfig,
    unique: UniqueScores,
    levels: NDArray[np.int8],
) -> list[Rejection]:
    left_out = np.flatnonzero(levels == 0)
    pairs = fetched_pairs(layout, shard, unique.keys.take(left_out))
    rejections = []
    for place, pair in zip(left_out.tolist(), pairs, strict=True):
        score = float(unique.clip_score[place])
        if not unique.is_to_keep[place]:
            reason = RejectReason.NOT_TO_KEEP
            detail = f"does not fulfil levels.keep {config.keep!r}"
        elif unique.is_high_enough[place]:
            reason = RejectReason.BELOW_TOP_FRACTION
            value = float(unique.value[place])
            detail = f"scored {value:.6f}, below the best scored pairs that are kept"
        else:
            reason = RejectReason.BELOW_MINIMUM_SCORE
            detail = f"scored {score:.6f}, the minimum is {config.minimum_score}"
        rejected = SampleRejected(reason, detail)
        rejections.append(rejection(pair, rejected, clip_score=score))
    return rejections
