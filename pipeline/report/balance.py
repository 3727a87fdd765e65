"""Counts of what each stage kept and rejected, from the Parquet files alone."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.columns import read_table
from schemas.errors import DatasetError, RejectReason
from schemas.manifest import StageCounts
from schemas.many_files import map_files
from schemas.records import REJECTION_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import list_files, open_read


def stage_tables(layout: DatasetLayout, stage: Stage) -> list[str]:
    """Returns the paths of the tables of what a stage kept, in the order of the shards."""
    return list_files(layout.folder(stage), ".parquet")


def count_stages(layout: DatasetLayout) -> dict[str, StageCounts]:
    """Returns, for each stage that has worked, how many rows it got, kept and rejected.

    Of a stage that is not done, only the shards that are done count.
    """
    stages: dict[str, StageCounts] = {}
    for stage in Stage:
        tables = stage_tables(layout, stage)
        kept = sum(map_files(_count_rows, tables))
        rejected = count_rejections(layout, stage)
        if tables or rejected:
            rows_in = kept + sum(rejected.values())
            stages[stage.value] = StageCounts(rows_in=rows_in, kept=kept, rejected=rejected)
    return stages


def count_rejections(layout: DatasetLayout, stage: Stage) -> dict[str, int]:
    """Returns how many rows a stage rejected for each reason, in the order of the reasons."""
    found: Counter[str] = Counter()
    for counts in map_files(_count_reasons, list_files(layout.rejected_folder(stage), ".parquet")):
        found.update(counts)
    return {reason.value: found[reason.value] for reason in RejectReason if found[reason.value]}


def count_truncated_captions(layout: DatasetLayout) -> int:
    """Returns how many scored captions were longer than the model's context."""
    return sum(map_files(_count_truncated, stage_tables(layout, Stage.SCORE)))


def total_rejections(stages: Sequence[StageCounts]) -> dict[str, int]:
    """Returns how many rows were rejected for each reason by all stages together."""
    found: Counter[str] = Counter()
    for stage in stages:
        found.update(stage.rejected)  # a purge takes pairs out of the read stage for any reason
    return dict(found)


def check_balance(layout: DatasetLayout, stages: dict[str, StageCounts]) -> None:
    """Raises `DatasetError` unless every stage got exactly what the stage before it kept."""
    names = list(stages)
    for before, after in pairwise(names):
        if stages[before].kept != stages[after].rows_in:
            raise DatasetError(
                f"the counts of {layout.root} do not balance: {before} kept "
                f"{stages[before].kept} rows, {after} kept and rejected "
                f"{stages[after].rows_in}: run `{after}` and the stages after it first"
            )


def _count_rows(path: str) -> int:
    with open_read(path) as file:
        return int(pq.read_metadata(file).num_rows)


def _count_reasons(path: str) -> dict[str, int]:
    with open_read(path) as file:
        reasons = read_table(file, REJECTION_SCHEMA, columns=["reason"])["reason"]
    counts = pc.value_counts(reasons).to_pylist()
    return {count["values"]: count["counts"] for count in counts}


def _count_truncated(path: str) -> int:
    with open_read(path) as file:
        table = read_table(file, SCORED_SCHEMA, columns=["is_caption_truncated"])
    return pc.sum(table["is_caption_truncated"]).as_py() or 0
