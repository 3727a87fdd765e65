"""Signals: more columns of scored shards, computed from what is stored in them.

A signal is added to a shard that is scored; its other columns, and so all that was made from them,
stay as they are. Each says in its field's metadata how it was made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.captions import chosen_captions
from pipeline.dataset.commits import stage_fingerprint
from pipeline.dataset.embeddings import embedding_array
from pipeline.dataset.fetched_rows import fetched_rows
from pipeline.dataset.progress import end_piece
from pipeline.dataset.worktimes import timed
from schemas.columns import (
    SIGNAL_FIELD,
    check_schema,
    read_table,
    signal_field,
    signal_fields,
    with_kept,
    write_table,
)
from schemas.errors import DatasetError
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint, open_read
from scoring.config import ScoreConfig
from scoring.signals.function import checked_values, load_function
from scoring.signals.head import load_head
from scoring.signals.names import SignalSpec, parse_signals
from scoring.signals.negclip import REFERENCE_PAIRS, TEMPERATURE, Reference, negclip
from scoring.signals.pairs import ScoredPairs

MOST_REFERENCE_SHARDS = 64


@dataclass(frozen=True, slots=True)
class Making:
    """How a signal is made: what decides it, and what it is called for people."""

    spec: SignalSpec
    identity: dict[str, str]
    description: str

    def as_json(self, fingerprint: str) -> str:
        """Returns what the column's field says."""
        told = {
            "kind": self.spec.kind,
            "argument": self.spec.argument,
            **self.identity,
            "fingerprint": fingerprint,
        }
        return json.dumps(told, sort_keys=True)


def add_signals(
    shard: int, layout: DatasetLayout, config: ScoreConfig, shards: Sequence[int]
) -> int:
    """Returns the shard once it has all signals that are asked for.

    Args:
        shards: all of the dataset, scored.

    Raises:
        DatasetError: if the shard is not scored, or has no embeddings.
        ConfigError: if a signal cannot be computed.
    """
    path = layout.scored(shard)
    upstream = committed_fingerprint(path)
    if upstream is None:
        raise DatasetError(f"{path} is missing: score shard {shard} first")
    with open_read(path) as file, pq.ParquetFile(file) as parquet:
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    standing = {
        field.name: json.loads(field.metadata[SIGNAL_FIELD]) for field in signal_fields(schema)
    }
    missing = []
    for spec in parse_signals(config.signals):
        making = making_of(spec, layout, shards)
        fingerprint = stage_fingerprint(Stage.SCORE, {"signal": making.identity}, [upstream])
        if standing.get(spec.name, {}).get("fingerprint") != fingerprint:
            missing.append((making, fingerprint))
    if missing:
        with timed(layout, Stage.SCORE, "signals") as work:
            work.rows = rows
            _write(path, layout, shard, shards, missing)
    end_piece(layout, Stage.SCORE, "signals", shard)
    return shard


def check_signals(config: ScoreConfig) -> None:
    """Raises `ConfigError` where a signal's file or function is not there, before work starts."""
    for spec in parse_signals(config.signals):
        if spec.kind == "head":
            load_head(spec.argument)
        elif spec.kind == "function":
            load_function(spec.argument)


def making_of(spec: SignalSpec, layout: DatasetLayout, shards: Sequence[int]) -> Making:
    """Returns how a signal is made.

    Raises:
        ConfigError: if its file or function is not there.
    """
    if spec.kind == "head":
        head = load_head(spec.argument)
        told = f"head {spec.argument.rsplit('/', 1)[-1]} on the image embedding"
        return Making(spec, {"sha256": head.sha256}, told)
    if spec.kind == "function":
        _, sha256 = load_function(spec.argument)
        return Making(spec, {"function": spec.argument, "sha256": sha256}, spec.argument)
    identity = {
        "temperature": str(TEMPERATURE),
        "reference": _reference_identity(layout, tuple(shards)),
    }
    told = "cosine less how well each half fits other pairs (negCLIPLoss, arXiv:2405.19547)"
    return Making(spec, identity, told)


def signal_values(
    spec: SignalSpec, pairs: ScoredPairs, layout: DatasetLayout, shards: Sequence[int]
) -> NDArray[np.float32]:
    """Returns a signal of some pairs, (n,).

    Raises:
        ConfigError: if it cannot be computed.
    """
    if spec.kind == "head":
        return load_head(spec.argument).values(pairs)
    if spec.kind == "function":
        function, _ = load_function(spec.argument)
        return checked_values(spec.argument, function(pairs), len(pairs.keys))
    identity = _reference_identity(layout, tuple(shards))
    return negclip(pairs, reference_of(layout, tuple(shards), identity))


def largest_signal_differences(
    layout: DatasetLayout, rows_of: Mapping[int, list[int]], shards: Sequence[int]
) -> dict[str, float]:
    """Returns, for each stored signal, how far it is from the same computed again.

    Args:
        rows_of: the rows to look at, by shard.
        shards: all of the dataset.

    Raises:
        DatasetError: if what a signal was made by is another one now.
    """
    largest: dict[str, float] = {}
    for shard, rows in rows_of.items():
        with open_read(layout.scored(shard)) as file:
            scored = read_table(file, SCORED_SCHEMA).take(pa.array(rows))
        for field in signal_fields(scored.schema):
            made = json.loads(field.metadata[SIGNAL_FIELD])
            spec = SignalSpec(made["kind"], made["argument"], field.name)
            now = making_of(spec, layout, shards).identity
            changed = [name for name, value in now.items() if made.get(name) != value]
            if changed:
                raise DatasetError(
                    f"signal {field.name} was made with another {' and '.join(changed)} than there "
                    f"is now: bring back what made it, or compute it again by `score`"
                )
            found = signal_values(spec, scored_pairs(layout, shard, scored), layout, shards)
            stored = np.asarray(scored[field.name].to_numpy(), np.float64)
            size = np.abs(stored - found) / np.maximum(np.abs(stored), 1.0)
            largest[field.name] = max(largest.get(field.name, 0.0), float(size.max(initial=0.0)))
    return largest


def reference_rows(shards: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns from which shards the reference is taken, and how many rows of each, the first.

    Rows stand in the order of a hash: the first of them are a fair sample.
    """
    ordered = sorted(shards)
    count = min(len(ordered), MOST_REFERENCE_SHARDS)
    rows = -(-REFERENCE_PAIRS // count)
    return [(ordered[index * len(ordered) // count], rows) for index in range(count)]


def _reference_identity(layout: DatasetLayout, shards: tuple[int, ...]) -> str:
    """Returns what tells a reference from another: `purge` takes rows out of a scored shard."""
    parts = []
    for shard, rows in reference_rows(shards):
        with open_read(layout.scored(shard)) as file:
            found = pq.read_metadata(file).num_rows
        parts.append(f"{shard}:{committed_fingerprint(layout.scored(shard))}:{rows} of {found}")
    return ", ".join(parts)


@lru_cache(maxsize=1)
def reference_of(layout: DatasetLayout, shards: tuple[int, ...], identity: str) -> Reference:
    """Returns the pairs that all pairs are held against.

    Args:
        identity: of the reference, for the cache.
    """
    keys: list[str] = []
    image, text = [], []
    for shard, rows in reference_rows(shards):
        names = ["key", "image_embedding", "text_embedding"]
        with open_read(layout.scored(shard)) as file:
            parquet = pq.ParquetFile(file)
            check_schema(parquet.schema_arrow, SCORED_SCHEMA, layout.scored(shard))
            for batch in parquet.iter_batches(rows, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                keys += table["key"].to_pylist()
                image.append(embedding_array(table, "image_embedding", layout.scored(shard)))
                text.append(embedding_array(table, "text_embedding", layout.scored(shard)))
                break
    places = {key: row for row, key in enumerate(keys)}
    return Reference(np.concatenate(image), np.concatenate(text), places)


def scored_pairs(layout: DatasetLayout, shard: int, scored: pa.Table) -> ScoredPairs:
    """Returns rows of a scored shard as signals take them."""
    rows = fetched_rows(layout, shard, scored["key"], ["caption", "captions"])
    path = layout.scored(shard)
    return ScoredPairs(
        keys=scored["key"].to_pylist(),
        captions=chosen_captions(rows, scored["caption_index"].to_pylist()),
        clip_score=np.asarray(scored["clip_score"].to_numpy(), np.float32),
        image_embedding=embedding_array(scored, "image_embedding", path),
        text_embedding=embedding_array(scored, "text_embedding", path),
    )


def _write(
    path: str,
    layout: DatasetLayout,
    shard: int,
    shards: Sequence[int],
    missing: Sequence[tuple[Making, str]],
) -> None:
    """Writes a scored shard anew with signals, its other columns as they are."""
    with open_read(path) as file:
        table = read_table(file, SCORED_SCHEMA)
    metadata = table.schema.metadata
    columns = {field.name: (field, table[field.name]) for field in signal_fields(table.schema)}
    own = table.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)
    pairs = scored_pairs(layout, shard, own) if own.num_rows else None
    for making, fingerprint in missing:
        name = making.spec.name
        field = signal_field(name, making.description, making.as_json(fingerprint))
        found = np.empty(0, np.float32)
        if pairs is not None:
            found = signal_values(making.spec, pairs, layout, shards)
        columns[name] = (field, pa.chunked_array([pa.array(found)]))
    ordered = [columns[name] for name in sorted(columns)]
    schema = with_kept(SCORED_SCHEMA, [field for field, _ in ordered]).with_metadata(metadata)
    table = pa.Table.from_arrays([*own.columns, *(values for _, values in ordered)], schema=schema)
    with commit_file(path) as out:
        write_table(table, out)
