"""What to tell a person at the end of a job of which many rows were lost for one reason."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from pipeline.report.inspect import rejected_examples
from pipeline.report.write import HINTS
from schemas.columns import read_table
from schemas.errors import RejectReason
from schemas.manifest import StageCounts
from schemas.records import FETCHED_SCHEMA, REJECTION_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import exists, list_files, open_read, read_json
from schemas.terminal import Console

LARGE_RATIO = 0.1
"""Share of a stage's rows from which on a reason is spoken of: not a few bad rows, but a cause."""

WRONG_COLUMN_RATIO = 0.9
"""Share of a column's hashes from which on the column is wrong, not single images."""

MEANT = frozenset(
    {
        RejectReason.DUPLICATE_ROW.value,
        RejectReason.EXACT_DUPLICATE.value,
        RejectReason.NEAR_DUPLICATE.value,
        RejectReason.BELOW_MINIMUM_SCORE.value,
        RejectReason.BELOW_TOP_FRACTION.value,
    }
)
"""Reasons for which rows are left out because the job was asked to."""


def print_causes(
    layout: DatasetLayout, stages: Mapping[str, StageCounts], console: Console
) -> None:
    """Prints, in red, why many rows were lost, if they were."""
    wrong = wrong_hash_columns(layout, stages)
    told_already = {RejectReason.HASH_MISMATCH.value} if wrong else set()
    large = large_rejections(layout, stages, MEANT | told_already)
    told = [*wrong, *large, *unseen_columns(layout)]
    for cause in told:
        console.print(cause, style="red", highlight=False, markup=False)


def large_rejections(
    layout: DatasetLayout, stages: Mapping[str, StageCounts], passed_over: frozenset[str] = MEANT
) -> list[str]:
    """Returns a sentence for each reason that cost a stage a large share of its rows.

    Each has an example, and what to do.

    Args:
        passed_over: reasons that need no word, as what the job was asked to leave out.
    """
    told = []
    for name, counts in stages.items():
        large = {
            reason: count
            for reason, count in counts.rejected.items()
            if count and reason not in passed_over and count >= LARGE_RATIO * counts.rows_in
        }
        examples = rejected_examples(layout, Stage(name), set(large)) if large else {}
        for reason, count in sorted(large.items(), key=lambda item: (-item[1], item[0])):
            hint = HINTS.get(reason, f"`aligngpt-curate inspect {layout.root}` shows more of them")
            example = f" For example: {_shown(examples[reason])}." if reason in examples else ""
            told.append(
                f"{name} left out {count:,} of {counts.rows_in:,} rows "
                f"({count / counts.rows_in:.0%}) as {reason}.{example} What to do: {hint}."
            )
    return told


def wrong_hash_columns(layout: DatasetLayout, stages: Mapping[str, StageCounts]) -> list[str]:
    """Returns a sentence for each column of hashes that nearly all images mismatch.

    Of the images that were there: most others may have been lost before they could be compared.
    """
    fetched = stages.get(Stage.FETCH.value)
    if fetched is None or not fetched.rejected.get(RejectReason.HASH_MISMATCH.value):
        return []
    wrong, right = _mismatches(layout), _matches(layout)
    return [
        f"{wrong[name]:,} of {wrong[name] + right[name]:,} images do not have the {name} that the "
        f"input gives for them: it is likely of other bytes, such as a resized copy's or those of "
        "years ago. What to do: read the input without --read.verify-hashes, into a new folder."
        for name in sorted(wrong)
        if wrong[name] >= WRONG_COLUMN_RATIO * (wrong[name] + right[name])
    ]


def _mismatches(layout: DatasetLayout) -> Counter[str]:
    """Returns how many images did not have the hash that was expected, by its algorithm."""
    counts: Counter[str] = Counter()
    for path in list_files(layout.rejected_folder(Stage.FETCH), ".parquet"):
        with open_read(path) as file:
            table = read_table(file, REJECTION_SCHEMA, ["reason", "detail"])
        rows = zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True)
        wrong = RejectReason.HASH_MISMATCH.value
        counts.update(str(detail).split(" ", 1)[0] for reason, detail in rows if reason == wrong)
    return counts


def _matches(layout: DatasetLayout) -> Counter[str]:
    """Returns how many images have the hash that was expected, by its algorithm."""
    counts: Counter[str] = Counter()
    for path in list_files(layout.folder(Stage.FETCH), ".parquet"):
        with open_read(path) as file:
            hashes: pa.ChunkedArray = read_table(file, FETCHED_SCHEMA, ["expected_hash"])[0]
        counts.update(found.split(":", 1)[0] for found in hashes.drop_null().to_pylist())
    return counts


def unseen_columns(layout: DatasetLayout) -> list[str]:
    """Returns a sentence about the columns that were to be kept and that no row had."""
    marker = f"{layout.run}/read.json"
    names = read_json(marker).get("unseen_columns", []) if exists(marker) else []
    if not names:
        return []
    return [
        f"No row has anything under {', '.join(map(repr, names))}, which read.keep_columns asks "
        "for. What to do: compare the name with those in the input."
    ]


def _shown(text: str) -> str:
    """Returns a text that comes from the web without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
