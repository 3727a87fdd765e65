"""Duplicates that tests plant, and the stage that finds them."""

import apache_beam as beam
import numpy as np
from apache_beam.testing.util import assert_that, equal_to

from pipeline.deduplicate.transform import KeepBestOfDuplicates
from scoring.config import DeduplicateConfig
from tests.curated_tables import read_rows


def deduplicate(layout, shards, **settings):
    """Runs the stage over these shards."""
    config = DeduplicateConfig(device="cpu", **settings)
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        unique = pipeline | beam.Create(shards) | KeepBestOfDuplicates(layout, config)
        assert_that(unique, equal_to(shards))


def vector(seed, noise=0.0):
    """Returns a unit vector (32,), moved by so much noise."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(32)
    base = base / np.linalg.norm(base)
    other = np.random.default_rng(1000 + int(noise * 1e6)).standard_normal(32)
    moved = base + noise * other / np.linalg.norm(other)
    return moved / np.linalg.norm(moved)


def kept(layout, shards):
    """Returns how many duplicates each key that was kept stands for."""
    return {
        row["key"]: row["duplicate_count"] for s in shards for row in read_rows(layout.unique(s))
    }
