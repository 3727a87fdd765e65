"""Signals: more columns of scored shards, computed from what is stored in them.

A signal is added to a shard that is scored; its other columns, and so all that was made from them,
stay as they are. Each says in its field's metadata how it was made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from pipeline.score.looks import (
    check_look,
    config_of,
    look_description,
    look_identity,
    look_tolerance,
    look_values,
)
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
    recorded: dict[str, str] = field(default_factory=dict)
    """What else is known of it, which moves a value within rounding only."""

    def as_json(self, fingerprint: str) -> str:
        """Returns what the column's field says."""
        told = {
            "kind": self.spec.kind,
            "argument": self.spec.argument,
            **self.identity,
            **self.recorded,
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
        making = making_of(spec, layout, shards, config)
        fingerprint = stage_fingerprint(Stage.SCORE, {"signal": making.identity}, [upstream])
        if standing.get(spec.name, {}).get("fingerprint") != fingerprint:
            missing.append((making, fingerprint))
    if missing:
        with timed(layout, Stage.SCORE, "signals") as work:
            work.rows = rows
            _write(path, layout, shard, shards, missing, config)
    name = parse_signals(config.signals)[0].name.replace("_", "-")
    end_piece(layout, Stage.SCORE, "signals", f"{shard}-{name}")
    return shard


def signal_steps(config: ScoreConfig) -> list[ScoreConfig]:
    """Returns the passes over the shards that the signals take, each with what it computes.

    Those from stored embeddings share one; each model has its own, so that it is loaded once.
    """
    kinds = {text: parse_signals((text,))[0].looks_at_pictures for text in config.signals}
    together = tuple(text for text in config.signals if not kinds[text])
    groups = [together] if together else []
    groups += [(text,) for text in config.signals if kinds[text]]
    return [replace(config, signals=group) for group in groups]


def looks_at_pictures(config: ScoreConfig) -> bool:
    """Returns whether a pass runs a model over the pictures."""
    return any(spec.looks_at_pictures for spec in parse_signals(config.signals))


def check_signals(config: ScoreConfig, *, runs_here: bool = True) -> None:
    """Raises `ConfigError` where a signal's file, function or model is not there.

    Args:
        runs_here: whether models will run on this machine, so that their device must be here.
    """
    for spec in parse_signals(config.signals):
        if spec.looks_at_pictures:
            check_look(spec, config, runs_here=runs_here)
        elif spec.kind == "head":
            load_head(spec.argument)
        elif spec.kind == "function":
            load_function(spec.argument)


def making_of(
    spec: SignalSpec, layout: DatasetLayout, shards: Sequence[int], config: ScoreConfig
) -> Making:
    """Returns how a signal is made.

    Raises:
        ConfigError: if its file, function or model is not there.
    """
    if spec.looks_at_pictures:
        identity, recorded = look_identity(spec, config)
        return Making(spec, identity, look_description(spec, config), recorded)
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


def read_signals_again(
    layout: DatasetLayout,
    rows_of: Mapping[int, list[int]],
    shards: Sequence[int],
    config: ScoreConfig,
) -> dict[str, "SignalDifference"]:
    """Returns, for each stored signal, how far it is from the same computed again.

    Args:
        rows_of: the rows to look at, by shard.
        shards: all of the dataset.
        config: that the scores were made with.

    Raises:
        DatasetError: if what a signal was made by is another one now.
    """
    found: dict[str, SignalDifference] = {}
    with open_read(layout.scored(next(iter(rows_of)))) as file:
        names = [field.name for field in signal_fields(pq.read_schema(file))]
    for name in names:  # one after the other: each model is loaded once
        sizes = [
            _difference(layout, shard, rows, name, shards, config)
            for shard, rows in rows_of.items()
        ]
        found[name] = max(sizes, key=lambda difference: difference.size)
    return found


@dataclass(frozen=True, slots=True)
class SignalDifference:
    """How far a stored signal is from the same computed again, relative to values above 1."""

    size: float
    tolerance: float


def _difference(
    layout: DatasetLayout,
    shard: int,
    rows: list[int],
    name: str,
    shards: Sequence[int],
    config: ScoreConfig,
) -> SignalDifference:
    """Returns the largest difference among some rows of a shard."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA).take(pa.array(rows))
    made = json.loads(scored.schema.field(name).metadata[SIGNAL_FIELD])
    spec = SignalSpec(made["kind"], made["argument"], name)
    config = config_of(made, config)
    now = making_of(spec, layout, shards, config).identity
    changed = [key for key, value in now.items() if made.get(key) != value]
    if changed:
        raise DatasetError(
            f"signal {name} was made with another {' and '.join(changed)} than there is now: "
            "bring back what made it, or compute it again by `score`"
        )
    found = _values(spec, layout, shard, scored, shards, config)
    stored = np.asarray(scored[name].to_numpy(), np.float64)
    size = np.abs(stored - found) / np.maximum(np.abs(stored), 1.0)
    size = np.where(np.isnan(stored) & np.isnan(found), 0.0, size)
    size = np.where(np.isfinite(size), size, np.inf)
    return SignalDifference(float(size.max(initial=0.0)), look_tolerance(spec, config))


def _values(
    spec: SignalSpec,
    layout: DatasetLayout,
    shard: int,
    scored: pa.Table,
    shards: Sequence[int],
    config: ScoreConfig,
) -> NDArray[np.float32]:
    """Returns a signal of rows of a scored shard, (n,)."""
    if not len(scored):
        return np.empty(0, np.float32)
    if not spec.looks_at_pictures:
        return signal_values(spec, scored_pairs(layout, shard, scored), layout, shards)
    captions = _captions(layout, shard, scored)
    return look_values(spec, layout, shard, scored["key"], captions, config)


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
    path = layout.scored(shard)
    return ScoredPairs(
        keys=scored["key"].to_pylist(),
        captions=_captions(layout, shard, scored),
        clip_score=np.asarray(scored["clip_score"].to_numpy(), np.float32),
        image_embedding=embedding_array(scored, "image_embedding", path),
        text_embedding=embedding_array(scored, "text_embedding", path),
    )


def _captions(layout: DatasetLayout, shard: int, scored: pa.Table) -> list[str]:
    """Returns the caption of each row, of several the one that scored best."""
    rows = fetched_rows(layout, shard, scored["key"], ["caption", "captions"])
    return chosen_captions(rows, scored["caption_index"].to_pylist())


def _write(
    path: str,
    layout: DatasetLayout,
    shard: int,
    shards: Sequence[int],
    missing: Sequence[tuple[Making, str]],
    config: ScoreConfig,
) -> None:
    """Writes a scored shard anew with signals, its other columns as they are."""
    with open_read(path) as file:
        table = read_table(file, SCORED_SCHEMA)
    metadata = table.schema.metadata
    columns = {field.name: (field, table[field.name]) for field in signal_fields(table.schema)}
    own = table.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)
    for making, fingerprint in missing:
        name = making.spec.name
        field = signal_field(name, making.description, making.as_json(fingerprint))
        found = _values(making.spec, layout, shard, own, shards, config)
        columns[name] = (field, pa.chunked_array([pa.array(found)]))
    ordered = [columns[name] for name in sorted(columns)]
    schema = with_kept(SCORED_SCHEMA, [field for field, _ in ordered]).with_metadata(metadata)
    table = pa.Table.from_arrays([*own.columns, *(values for _, values in ordered)], schema=schema)
    with commit_file(path) as out:
        write_table(table, out)
