"""Whether a dataset's counts and levels agree: the manifest, the stages' tables, the edges."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa

from pipeline.dataset.derivation import read_derivation
from pipeline.report.balance import count_stages
from schemas.errors import DatasetError
from schemas.manifest import Manifest, StageCounts
from schemas.shards import DatasetLayout
from schemas.storage import exists, read_json


def imbalances(manifest: Manifest) -> Iterator[str]:
    """Yields every count of the manifest that contradicts another."""
    before: tuple[str, int] | None = None
    for stage, counts in manifest.stages.items():
        rejected = sum(counts.rejected.values())
        if counts.rows_in != counts.kept + rejected:
            yield f"{stage}: {counts.rows_in} rows in, but {counts.kept} kept + {rejected} rejected"
        if before is not None and counts.rows_in != before[1]:
            yield f"{stage}: {counts.rows_in} rows in, but {before[0]} kept {before[1]}"
        before = (stage, counts.kept)
    rejected = sum(manifest.rejected.values())
    if manifest.rows_in != manifest.kept + rejected:
        yield f"{manifest.rows_in} rows in, but {manifest.kept} kept + {rejected} rejected"
    samples = sum(entry.samples for entry in manifest.shards)
    if samples != manifest.kept:
        yield f"the train shards hold {samples} samples, but {manifest.kept} were kept"


def count_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    """Yields what the tables and edges in the folder say otherwise than the manifest."""
    yield from _stage_problems(layout, manifest)
    yield from _level_problems(layout, manifest)


def _stage_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    try:
        derivation = read_derivation(layout)
        stages = count_stages(layout) if derivation is None else derivation.stages
    except (DatasetError, OSError, pa.ArrowException) as error:
        yield f"the stages' tables cannot be counted: {' '.join(str(error).split())}"
        return
    for name, counted in manifest.stages.items():
        found = stages.get(name, StageCounts(rows_in=0, kept=0, rejected={}))
        for what in ("kept", "rejected"):
            there, recorded = getattr(found, what), getattr(counted, what)
            if there != recorded:
                yield f"{name}: its tables have {there} {what}, the manifest says {recorded}"


def _level_problems(layout: DatasetLayout, manifest: Manifest) -> Iterator[str]:
    levels = manifest.level_edges or []
    for lower, higher in pairwise(levels):
        is_empty = lower["highest_score"] is None or higher["lowest_score"] is None
        is_whole = manifest.level_drift is None and not manifest.parents
        settings = manifest.config["levels"]
        is_shared = settings["per_source"] or settings.get("by", "clip_score") != "clip_score"
        if is_empty or is_shared or not is_whole:
            continue
        if lower["highest_score"] > higher["lowest_score"]:
            yield (
                f"manifest.json: level {lower['level']} reaches up to {lower['highest_score']}, "
                f"level {higher['level']} begins at {higher['lowest_score']}"
            )
    if not levels or not exists(layout.edges):
        return
    try:
        found = {level["level"]: level for level in read_json(layout.edges)["levels"]}
    except (ValueError, KeyError, TypeError) as error:
        yield f"levelled/edges.json is no file of edges: {error!r}"
        return
    if manifest.recaption is not None:
        yield from _levels_as_cut(manifest, found)
        return
    pairs = (("count", "count"), ("lowest_score", "min_score"), ("highest_score", "max_score"))
    for level in levels:
        there = found.get(level["level"], {})
        for name, name_there in pairs:
            if there.get(name_there) != level[name]:
                yield (
                    f"levelled/edges.json: level {level['level']} has {name_there} "
                    f"{there.get(name_there)}, the manifest says {level[name]}"
                )


def _levels_as_cut(manifest: Manifest, found: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Yields where samples had other levels before a model wrote captions than were cut."""
    assert manifest.recaption is not None
    before = manifest.recaption.levels_before
    for level in manifest.level_edges or []:
        number = level["level"]
        there, told = found.get(number, {}).get("count", 0), before.get(str(number), 0)
        if there != told:
            yield (
                f"levelled/edges.json: level {number} has count {there}, the samples that had it "
                f"before captions were written are {told}"
            )
