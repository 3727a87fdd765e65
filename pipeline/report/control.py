"""The control of a score: the pairs of a dataset beside exchanged ones, from stored embeddings.

Shards are read one after another, a batch of rows at a time, and of many shards an even choice:
rows stand in them in the order of a hash, so that any of them are a fair sample. Captions are
exchanged within a batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.captions import caption_choices
from pipeline.dataset.embeddings import embedding_array
from pipeline.report.contents import LevelContents
from pipeline.report.pair_groups import (
    SCORE,
    chosen_tables,
    fetched_of,
    groups_of,
    levels_of,
)
from schemas.columns import check_schema
from schemas.manifest import GroupControl, LevelControl, ScoreControl
from schemas.progress import shown
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout, shard_number
from schemas.storage import exists, open_read, read_json
from scoring.control import (
    CELLS,
    ScoreCounts,
    Wins,
    area,
    area_interval,
    exchange_captions,
    own_scores,
    share_between,
)

ROWS_AT_ONCE = 8192
MOST_ROWS_OF_SHARD = 65_536
"""Rows that are read of a shard: with CONTROLLED_SHARDS the share is known to a thousandth."""

NEAR_HALF = 0.6
"""A share below it warns: the bundled corpus has 0.8 by a small model, chance 0.5."""
FEWEST_PAIRS = 30
"""Of which a share can be told from one half at all."""

FEWEST_OF_GROUP = 100
GROUP_Z = 4.0
"""Standard errors: of ten thousand hosts as good as the others, less than one stands out."""
GROUP_MARGIN = 0.05
"""By how much a group must fall behind to be named."""
MOST_GROUPS = 4096
"""Hosts that are counted beside each other; beyond twice as many the rarest are forgotten."""
NAMED_OF_KIND = 5


@dataclass(slots=True)
class Control:
    """What was counted so far."""

    overall: ScoreCounts = field(default_factory=lambda: _nothing())
    levels: dict[int, ScoreCounts] = field(default_factory=dict)
    groups: dict[str, dict[str, Wins]] = field(default_factory=dict)
    """By kind, then by name."""
    is_cut: bool = False
    """Whether pairs were left out for their score when the levels were cut."""


def read_control(
    layout: DatasetLayout, each: Callable[[Sequence[str]], Iterable[str]] = iter
) -> Control | None:
    """Returns the control of a dataset's scores; None where embeddings are not stored.

    Args:
        each: yields the tables that are read, whoever wants to know when.

    Raises:
        DatasetError: if a table is damaged.
    """
    wanted = chosen_tables(layout)
    control = Control(is_cut=is_cut(layout))
    is_long = None if len(wanted) > 16 else False  # what is done in seconds says nothing
    tables = each(wanted)
    for path in shown("Exchanging captions", tables, len(wanted), unit="shard", is_active=is_long):
        _count_shard(control, layout, shard_number(path))
    return control if control.overall.wins.pairs else None


def summary(
    control: Control, levels: Sequence[LevelContents], *, is_deciding: bool = True
) -> ScoreControl:
    """Returns what the manifest says of it.

    Args:
        is_deciding: whether the score decides the levels.
    """
    counts, wins = control.overall, control.overall.wins
    return ScoreControl(
        signal=SCORE,
        pairs=wins.pairs,
        beats_ratio=wins.ratio,
        beats_interval=wins.interval(),
        auc=area(counts.own, counts.exchanged),
        auc_interval=area_interval(counts.own, counts.exchanged, wins.pairs),
        warning=warning_of(wins, SCORE, is_deciding=is_deciding),
        levels=_level_rows(control, levels),
        standing_out=standing_out(control.groups, wins.ratio),
    )


def warning_of(wins: Wins, signal: str = SCORE, *, is_deciding: bool = True) -> str | None:
    """Returns what to think of a signal that wins so often; None if there is no worry.

    Args:
        is_deciding: whether it decides the levels, which then mean no more than it does.
    """
    low, _ = wins.interval()
    if wins.ratio >= NEAR_HALF and low > 0.5:
        return None
    of_signal = "" if is_deciding and signal == SCORE else f"by {signal} "
    told = (
        f"{of_signal}a pair beats the same picture with another caption {wins.ratio:.2f} of the "
        "time, and 0.50 would be chance"
    )
    if wins.pairs < FEWEST_PAIRS or wins.ratio >= NEAR_HALF:
        meant = "the levels mean" if is_deciding else f"{signal} means"
        return f"{wins.pairs:,} pairs are too few to tell whether {meant} anything: {told}."
    much = "nothing" if low < 0.52 else "little"
    if not is_deciding:
        return f"{signal} tells {much} of these pairs: {told}. Do not choose by it."
    return (
        f"The levels of this dataset mean {much}: {told}. Either the captions do not belong to the "
        "pictures, or the scoring model knows nothing of such pictures or of this language: look "
        "at the pairs of the best level, and score with another model."
    )


def is_cut(layout: DatasetLayout) -> bool:
    """Returns whether pairs were left out when the levels were cut."""
    groups = read_json(layout.edges).get("groups", ()) if exists(layout.edges) else ()
    return any(group.get("left_out") for group in groups)


def _nothing() -> ScoreCounts:
    empty = np.zeros(CELLS, np.int64)
    return ScoreCounts(empty, empty, Wins())


def _count_shard(control: Control, layout: DatasetLayout, shard: int) -> None:
    """Adds the pairs of a scored shard."""
    levels = levels_of(layout, shard)
    fetched, languages = fetched_of(layout, shard)
    read = 0
    path = layout.scored(shard)
    with open_read(path) as file:
        parquet = pq.ParquetFile(file)
        check_schema(parquet.schema_arrow, SCORED_SCHEMA, path)
        names = ["key", "image_embedding", "text_embedding"]
        for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
            table = pa.Table.from_batches([batch])
            table = table.filter(pc.is_valid(table["image_embedding"]))
            read += len(table)
            if len(table) > 1:
                rows = fetched.take(pc.index_in(table["key"], fetched["key"].combine_chunks()))
                _count_rows(control, path, table, rows, languages, levels)
            if read >= MOST_ROWS_OF_SHARD:
                break


def _count_rows(
    control: Control,
    path: str,
    scored: pa.Table,
    fetched: pa.Table,
    languages: Sequence[str],
    levels: pa.Table | None,
) -> None:
    image = embedding_array(scored, "image_embedding", path)
    text = embedding_array(scored, "text_embedding", path)
    captions = np.array([len(texts) for texts in caption_choices(fetched)], np.int64)
    own, exchanged = own_scores(image, text), exchange_captions(image, text, captions).cosine
    control.overall = control.overall.plus(ScoreCounts.of(own, exchanged))
    if levels is not None:
        places = pc.index_in(scored["key"], levels["key"].combine_chunks())
        numbers = np.asarray(pc.fill_null(levels["alignment_level"].take(places), 0))
        for level in np.unique(numbers[numbers > 0]).tolist():
            rows = numbers == level
            counts = ScoreCounts.of(own[rows], exchanged[rows])
            control.levels[level] = control.levels.get(level, _nothing()).plus(counts)
    for kind, names in groups_of(fetched, languages):
        encoded = pa.array(names).dictionary_encode()
        codes = np.asarray(encoded.indices.to_numpy(), np.int64)
        is_one = len(encoded.dictionary) == 1
        within = exchanged if is_one else exchange_captions(image, text, captions, codes).cosine
        known = control.groups.setdefault(kind, {})
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            rows = codes == code
            if rows.sum() > 1:
                known[name] = known.get(name, Wins()).plus(Wins.of(own[rows], within[rows]))
        if len(known) > 2 * MOST_GROUPS:
            frequent = sorted(known, key=lambda name: (-known[name].pairs, name))[:MOST_GROUPS]
            control.groups[kind] = {name: known[name] for name in frequent}


def _level_rows(control: Control, levels: Sequence[LevelContents]) -> list[LevelControl]:
    shares = _exchanged_by_level(control, levels)
    other, pairs = control.overall.exchanged, control.overall.wins.pairs
    return [
        LevelControl(
            level=level,
            pairs=counts.wins.pairs,
            beats_ratio=counts.wins.ratio,
            beats_interval=counts.wins.interval(),
            by_chance=area(counts.own, control.overall.own),
            auc=area(counts.own, other),
            auc_interval=area_interval(counts.own, other, pairs),
            exchanged_ratio=shares.get(level),
        )
        for level, counts in sorted(control.levels.items())
    ]


def _exchanged_by_level(control: Control, levels: Sequence[LevelContents]) -> Mapping[int, float]:
    """Returns the share of exchanged pairs that score as each level; nothing if levels overlap."""
    filled = [level for level in levels if level.count]
    lows = [level.lowest_score or 0.0 for level in filled]
    highs = [level.highest_score or 0.0 for level in filled]
    if any(high > low for high, low in zip(highs, lows[1:], strict=False)):
        return {}
    if lows and not control.is_cut:
        lows[0] = -1.0  # what scores lower than every pair is of the lowest level
    tops = [*lows[1:], 1.0][: len(lows)]
    return {
        level.level: share_between(control.overall.exchanged, low, top)
        for level, low, top in zip(filled, lows, tops, strict=True)
    }


def standing_out(
    groups_of_kind: Mapping[str, Mapping[str, Wins]], of_all: float
) -> list[GroupControl]:
    """Returns the groups that fall behind all pairs, of each kind those with the most pairs.

    Args:
        groups_of_kind: kind to name to what was counted of it.
        of_all: the share of all pairs.
    """
    found = []
    for kind, groups in groups_of_kind.items():
        behind = [
            (name, wins)
            for name, wins in groups.items()
            if name
            and wins.pairs >= FEWEST_OF_GROUP
            and wins.interval(GROUP_Z)[1] < of_all - GROUP_MARGIN
        ]
        behind.sort(key=lambda item: (-item[1].pairs, item[0]))
        found += [
            GroupControl(
                kind=kind,
                name=name,
                pairs=wins.pairs,
                beats_ratio=wins.ratio,
                beats_interval=wins.interval(),
            )
            for name, wins in behind[:NAMED_OF_KIND]
        ]
    return found
