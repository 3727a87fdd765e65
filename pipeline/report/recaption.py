"""What became of captions that a model wrote: counts, moves of levels, and pairs to look at."""

import heapq
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
        self.heaps: dict[bool, list[tuple[int, str, dict[str, Any]]]] = {True: [], False: []}

    def add(self, row: dict[str, Any], path: str) -> None:
        """Takes a sample that the model was asked about."""
        is_taken = row["is_recaptioned"]
        self.asked += 1
        self.taken += is_taken
        self.before += row["original_score"]
        self.after += row["clip_score"]
        if row["model_refused"] is not None:
            self.refused[row["model_refused"]] += 1
        exchanged = row.get("exchanged_score")
        if exchanged is not None:
            own = np.array([row["model_score"]], np.float32)
            self.wins = self.wins.plus(Wins.of(own, np.array([[exchanged]], np.float32)))
            self.exchanged_taken += exchanged > row["original_score"]
        if is_taken:
            self.moved[row["original_level"], row["alignment_level"]] += 1
        heap, entry = self.heaps[is_taken], (-int(row["key"], 16), path, row)
        if len(heap) < EXAMPLES[is_taken]:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)

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
    chosen = [entry for heap in (tally.heaps[True], tally.heaps[False]) for entry in sorted(heap)]
    made = json.loads(fields[0].metadata[RECAPTION_FIELD])
    return tally.summary(made), [Example(path, row) for _, path, row in chosen]


def _count(tally: _Tally, table: pa.Table, path: str) -> None:
    is_asked = table["is_recaptioned"].is_valid()
    before = table["original_level"].combine_chunks().fill_null(0).to_pylist()
    now = table["alignment_level"].fill_null(0).to_pylist()
    tally.levels.update(first or last for first, last in zip(before, now, strict=True))
    for row in table.filter(is_asked).to_pylist():
        tally.add(row, path)


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
