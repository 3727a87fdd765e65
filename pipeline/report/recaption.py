"""What became of captions that a model wrote: counts, moves of levels, and pairs to look at."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.table import Table

from pipeline.report.contents import Contents, Example
from pipeline.report.control import FEWEST_PAIRS, NEAR_HALF
from schemas.columns import RECAPTION_FIELD, check_schema, recaption_fields
from schemas.manifest import RecaptionSummary
from schemas.records import TRAIN_SCHEMA
from schemas.storage import open_read
from scoring.control import Wins

ROWS_AT_ONCE = 65_536
EXAMPLES = {True: 12, False: 4}
"""Pairs to look at, of those whose caption the model replaced, and of those whose it did not."""

PICTURE = ("key", "alignment_level", "clip_score", "image_offset", "image_bytes")


class _Tally:
    """Counts over all samples."""

    def __init__(self) -> None:
        self.asked = self.taken = 0
        self.before = self.after = 0.0
        self.exchanged_taken = 0
        self.wins = Wins()
        self.refused: Counter[str] = Counter()
        self.levels: Counter[int] = Counter()
        self.moved: Counter[tuple[int, int]] = Counter()
        self.shown: dict[bool, list[tuple[str, dict[str, Any]]]] = {True: [], False: []}
        """Tables and rows of the pairs to look at, by whether the caption was taken: those with
        the lowest keys, which are hashes."""

    def add(self, samples: pa.Table, path: str) -> None:
        """Takes samples that the model was asked about."""
        is_taken = np.asarray(samples["is_recaptioned"].to_numpy(), np.bool_)
        before = _floats(samples["original_score"])
        self.asked += len(samples)
        self.taken += int(is_taken.sum())
        self.before += float(before.sum(dtype=np.float64))
        self.after += float(_floats(samples["clip_score"]).sum(dtype=np.float64))
        self.refused.update(samples["model_refused"].drop_null().to_pylist())
        if "exchanged_score" in samples.column_names:
            exchanged, own = _floats(samples["exchanged_score"]), _floats(samples["model_score"])
            is_known = ~np.isnan(exchanged)
            self.wins = self.wins.plus(Wins.of(own[is_known], exchanged[is_known, None]))
            self.exchanged_taken += int((exchanged > before).sum())
        taken = samples.filter(pa.array(is_taken))
        columns = (taken[name].to_pylist() for name in ("original_level", "alignment_level"))
        self.moved.update(zip(*columns, strict=True))
        for kind in (True, False):
            some = samples.filter(pa.array(is_taken == kind))
            first = pc.sort_indices(some["key"])[: EXAMPLES[kind]]
            found = [*self.shown[kind], *((path, row) for row in some.take(first).to_pylist())]
            self.shown[kind] = sorted(found, key=_key)[: EXAMPLES[kind]]

    def summary(self, made: dict[str, Any]) -> RecaptionSummary:
        """Returns what the manifest says."""
        moved: dict[str, dict[str, int]] = {}
        for (before, now), count in sorted(self.moved.items()):
            moved.setdefault(str(before), {})[str(now)] = count
        return RecaptionSummary(
            made=made,
            asked=self.asked,
            taken=self.taken,
            refused=dict(sorted(self.refused.items())),
            score_before=self.before / self.asked if self.asked else None,
            score_after=self.after / self.asked if self.asked else None,
            levels_before={str(level): self.levels[level] for level in sorted(self.levels)},
            moved=moved,
            beats_ratio=self.wins.ratio if self.wins.pairs else None,
            beats_interval=self.wins.interval() if self.wins.pairs else None,
            exchanged_taken=self.exchanged_taken if self.wins.pairs else None,
            warning=warning_of_captions(self.wins) if self.wins.pairs else None,
        )


def read_recaptions(paths: Sequence[str]) -> tuple[RecaptionSummary | None, list[Example]]:
    """Returns what became of captions by a model, and pairs to look at; None where there are none.

    Args:
        paths: of the train tables.
    """
    if not paths:
        return None, []
    with open_read(paths[0]) as file:
        fields = recaption_fields(pq.read_schema(file))
    if not fields:
        return None, []
    tally = _Tally()
    names = [*PICTURE, *(field.name for field in fields)]
    for path in paths:
        with open_read(path) as file:
            parquet = pq.ParquetFile(file)
            check_schema(parquet.schema_arrow, TRAIN_SCHEMA, path)
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=names, use_threads=False):
                _count(tally, pa.Table.from_batches([batch]), path)
    chosen = [one for kind in (True, False) for one in reversed(tally.shown[kind])]
    made = json.loads(fields[0].metadata[RECAPTION_FIELD])
    return tally.summary(made), [Example(path, row) for path, row in chosen]


def _count(tally: _Tally, table: pa.Table, path: str) -> None:
    is_asked = table["is_recaptioned"].is_valid()
    before = pc.coalesce(table["original_level"], table["alignment_level"]).fill_null(0)
    tally.levels.update(before.to_pylist())
    if pc.any(is_asked).as_py():
        tally.add(table.filter(is_asked), path)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Returns a column of float32, NaN where there is none, (n,)."""
    return np.asarray(column.to_numpy(), np.float32)


def _key(shown: tuple[str, dict[str, Any]]) -> str:
    return str(shown[1]["key"])


def recaption_cards(
    examples: Sequence[Example], thumbnail: Callable[[Example], str | None]
) -> list[dict[str, Any]]:
    """Returns what the cards of pairs before and after show."""
    return [{**example.row, "thumbnail": thumbnail(example)} for example in examples]


def recaption_page(
    found: RecaptionSummary | None, contents: Contents, thumbnail: Callable[[Example], str | None]
) -> dict[str, Any] | None:
    """Returns what the report shows of captions by a model; None where there are none."""
    if found is None:
        return None
    return {
        "line": recaption_line(found),
        "moves": moves_of(found, max([0, *contents.levels])),
        "cards": recaption_cards(contents.recaptioned, thumbnail),
    }


def moves_of(found: RecaptionSummary, num_levels: int) -> list[dict[str, Any]]:
    """Returns for each level how many samples it had, has, and where those that left it went."""
    arrived = Counter(
        {
            level: sum(row.get(str(level), 0) for row in found.moved.values())
            for level in range(1, num_levels + 1)
        }
    )
    rows = []
    for level in range(1, num_levels + 1):
        to = {int(now): count for now, count in found.moved.get(str(level), {}).items()}
        before = found.levels_before.get(str(level), 0)
        rows.append(
            {
                "level": level,
                "before": before,
                "now": before - sum(to.values()) + arrived[level],
                "to": [to.get(now, 0) for now in range(1, num_levels + 1)],
            }
        )
    return rows


def recaption_line(found: RecaptionSummary) -> str:
    """Returns what became of the captions in a sentence or two."""
    refused = ", ".join(f"{reason} {count:,}" for reason, count in found.refused.items())
    told = (
        f"{found.made.get('model', 'a model')} wrote captions for {found.asked:,} pictures; "
        f"{found.taken:,} of them score better and are taken"
    )
    if found.asked:
        told += f", mean score {found.score_before:.4f} before, {found.score_after:.4f} now"
    told = f"{told}. Refused: {refused or 'none'}."
    if found.beats_ratio is None or found.beats_interval is None:
        return told
    low, high = found.beats_interval
    return (
        f"{told} Control: a caption beats what the model wrote of another picture "
        f"{found.beats_ratio:.2f} of the time (95 % {low:.2f} to {high:.2f}; chance 0.50), and "
        f"{found.exchanged_taken:,} of those exchanged would score better than the captions before."
    )


def warning_of_captions(wins: Wins) -> str | None:
    """Returns what to think of captions that win so often; None if there is no worry."""
    low, _ = wins.interval()
    if wins.ratio >= NEAR_HALF and low > 0.5:
        return None
    told = (
        "what the model wrote of a picture scores above what it wrote of another one "
        f"{wins.ratio:.2f} of the time, and 0.50 would be chance"
    )
    if wins.pairs < FEWEST_PAIRS:
        few = f"{wins.pairs:,} captions by the model are too few to tell whether they fit"
        return f"{few} their pictures: {told}."
    return (
        f"The captions by the model hardly speak of their pictures: {told}. They are taken all "
        "the same where they score better, since the captions before were chosen for scoring "
        "badly. Look at the pairs, and do not train on them: --redo recaption without a model "
        "brings the captions of before."
    )


def recaption_table(found: RecaptionSummary, num_levels: int) -> Table:
    """Returns the levels before and now, and where samples went, for the terminal."""
    table = Table(title="Levels with captions by a model", title_justify="left")
    table.add_column("level", justify="right", no_wrap=True)
    for name in ("before", "now", *(f"to {level}" for level in range(1, num_levels + 1))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in moves_of(found, num_levels):
        to = [f"{count:,}" if count else "" for count in row["to"]]
        table.add_row(str(row["level"]), f"{row['before']:,}", f"{row['now']:,}", *to)
    return table
