"""Scored shards with signals that scoring computed of stored embeddings, and their controls."""

import json

import pyarrow.parquet as pq

from pipeline.report.controls import Controls, read_controls
from pipeline.score.signals import add_signals
from schemas.columns import SIGNAL_FIELD, signal_fields
from schemas.manifest import SignalSummary
from schemas.shards import DatasetLayout
from schemas.storage import commit_text
from scoring.config import ScoreConfig
from tests.pipeline.report.test_control import unit, urls, write

SIGNALS = ("agreement", "bound", "brevity", "negclip", "neighbours", "taste")


def write_scored(layout, signals, text=None, rows=300, **told):
    """Writes two shards with signals; each caption fits its picture, or is this, (2 * rows, 8)."""
    image = unit(2 * rows, 0)
    text = image if text is None else text
    captions = ["a" * (1 + number % 7) for number in range(rows)]
    for shard in (0, 1):
        part = slice(shard * rows, (shard + 1) * rows)
        host = f"host-{shard}.example"
        write(layout, shard, image[part], text[part], urls(host, rows), captions, **told)
    add(layout, signals)


def add(layout, signals) -> None:
    for shard in (0, 1):
        add_signals(shard, layout, ScoreConfig(signals=signals), [0, 1])


def controls(layout: DatasetLayout, by: str | None = None) -> Controls:
    """Returns the controls of all signals that are stored."""
    if by is not None:
        commit_text(layout.edges, json.dumps({"settings": {"by": by}}))
    summaries = [
        SignalSummary(
            name=field.name,
            description="",
            made=json.loads(field.metadata[SIGNAL_FIELD]),
            samples=0,
            lowest=None,
            mean=None,
            highest=None,
            level_means={},
        )
        for field in signal_fields(pq.read_schema(layout.scored(0)))
    ]
    return read_controls(layout, summaries, [])
