"""What to tell a person at the end of a job of which many rows were lost for one reason."""

from collections.abc import Mapping

from pipeline.report.inspect import rejected_examples
from pipeline.report.write import HINTS
from schemas.errors import RejectReason
from schemas.manifest import StageCounts
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console

LARGE_RATIO = 0.1
"""Share of a stage's rows from which on a reason is spoken of: not a few bad rows, but a cause."""

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
    for cause in large_rejections(layout, stages):
        console.print(cause, style="red", highlight=False, markup=False)


def large_rejections(layout: DatasetLayout, stages: Mapping[str, StageCounts]) -> list[str]:
    """Returns a sentence for each reason that cost a stage a large share of its rows.

    Each has an example, and what to do. What the job was asked to leave out is passed over.
    """
    told = []
    for name, counts in stages.items():
        large = {
            reason: count
            for reason, count in counts.rejected.items()
            if count and reason not in MEANT and count >= LARGE_RATIO * counts.rows_in
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


def _shown(text: str) -> str:
    """Returns a text that comes from the web without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
