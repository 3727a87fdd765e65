"""Levels of small tables and their edges, as the tests of several rooms need them."""

import json
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.testing.util import assert_that, equal_to

from pipeline.level.transform import AssignLevels
from scoring.config import LevelConfig
from tests.curated_tables import Row, read_rows


def level(layout, shards, **settings):
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        levelled = pipeline | beam.Create(shards) | AssignLevels(layout, LevelConfig(**settings))
        assert_that(levelled, equal_to(shards))


def some_rows(count, seed=0, mean=0.25, source="pairs.csv"):
    scores = np.random.default_rng(seed).normal(mean, 0.05, count).round(3)
    return [
        Row(f"{seed}-{place}", float(score), source=source) for place, score in enumerate(scores)
    ]


def levels_by_key(layout, shards):
    rows = [row for shard in shards for row in read_rows(layout.levelled(shard))]
    return {row["key"]: row["alignment_level"] for row in rows}


def expected_levels(rows, num_levels):
    rows = sorted(rows, key=lambda row: (np.float32(row.score), row.key))
    return {row.key: 1 + num_levels * rank // len(rows) for rank, row in enumerate(rows)}


def change_edges(layout, change):
    values = json.loads(Path(layout.edges).read_text())
    change(values["groups"])
    Path(layout.edges).write_text(json.dumps(values))


def forget_overall_edges(layout):
    change_edges(layout, lambda groups: groups.remove(next(g for g in groups if not g["source"])))
