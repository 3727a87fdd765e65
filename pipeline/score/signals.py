"""Signals: more columns of scored shards, computed from what is stored in them.

A signal is added to a shard that is scored; its other columns, and so all that was made from them,
stay as they are. Each says in its field's metadata how it was made.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.commits import stage_fingerprint
from pipeline.dataset.progress import end_piece
from pipeline.dataset.worktimes import timed
from pipeline.score.exchanges import exchange_of, exchanged_column, is_exchangeable
from pipeline.score.looks import (
    check_look,
    config_of,
    look_description,
    look_identity,
    look_tolerance,
    look_values,
)
from pipeline.score.reference import (
    HELD_AGAINST_REFERENCE,
    captions_of,
    reference_identity,
    reference_of,
    scored_pairs,
)
from schemas.columns import (
    SIGNAL_FIELD,
    exchanged_field,
    exchanged_fields,
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
from scoring.control import CONTROLLED_ROWS, Exchange
from scoring.signals.function import checked_values, exchanged_values, load_function
from scoring.signals.head import load_head
from scoring.signals.names import SignalSpec, parse_signals
from scoring.signals.pairs import ScoredPairs


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
    exchanged = exchanged_fields(schema)
    standing = {
        field.name: json.loads(field.metadata[SIGNAL_FIELD]) for field in signal_fields(schema)
    }
    missing = []
    for spec in parse_signals(config.signals):
        making = making_of(spec, layout, shards, config)
        fingerprint = stage_fingerprint(Stage.SCORE, {"signal": making.identity}, [upstream])
        is_standing = standing.get(spec.name, {}).get("fingerprint") == fingerprint
        if not is_standing or (spec.name not in exchanged and _is_cheap_to_exchange(spec)):
            missing.append((making, fingerprint))
    if missing:
        with timed(layout, Stage.SCORE, "signals") as work:
            work.rows = rows
            _write(path, layout, shard, shards, missing, config)
    name = parse_signals(config.signals)[0].name.replace("_", "-")
    end_piece(layout, Stage.SCORE, "signals", f"{shard}-{name}")
    return shard


def _is_cheap_to_exchange(spec: SignalSpec) -> bool:
    """Returns whether a signal made before there were controls gets one without a model's pass."""
    return not spec.looks_at_pictures and is_exchangeable(spec)


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
    held = HELD_AGAINST_REFERENCE[spec.kind]
    identity = {
        "temperature": str(held.temperature),
        "reference": reference_identity(layout, tuple(shards)),
    }
    return Making(spec, identity, held.description)


def signal_values(
    spec: SignalSpec,
    pairs: ScoredPairs,
    layout: DatasetLayout,
    shards: Sequence[int],
    exchange: Exchange | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Returns a signal of some pairs, (n,), and of exchanged ones, where there are.

    Args:
        exchange: of the first of the pairs, as `exchange_of` gives it.

    Raises:
        ConfigError: if it cannot be computed.
    """
    if spec.kind == "head":
        return load_head(spec.argument).values(pairs), None
    first = pairs.first(CONTROLLED_ROWS)
    if spec.kind == "function":
        function, _ = load_function(spec.argument)
        own = checked_values(spec.argument, function(pairs), len(pairs.keys))
        if exchange is None:
            return own, None
        return own, exchanged_values(spec.argument, function, first, exchange)
    held = HELD_AGAINST_REFERENCE[spec.kind]
    identity = reference_identity(layout, tuple(shards))
    reference = reference_of(layout, tuple(shards), identity)
    own = held.of_pairs(pairs, reference)
    return own, None if exchange is None else held.of_exchanged(first, reference, exchange)


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
    found, _ = _values(spec, layout, shard, scored, shards, config)
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
    exchange: Exchange | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Returns a signal of rows of a scored shard, (n,), and of exchanged pairs, where there are.

    Args:
        exchange: of the first of these rows.
    """
    if not len(scored):
        return np.empty(0, np.float32), None
    if spec.looks_at_pictures:
        captions = captions_of(layout, shard, scored)
        return look_values(spec, layout, shard, scored["key"], captions, config, exchange)
    return signal_values(spec, scored_pairs(layout, shard, scored), layout, shards, exchange)


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
    others = {name: (one, table[one.name]) for name, one in exchanged_fields(table.schema).items()}
    own = table.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)
    exchangeable = {making.spec.name for making, _ in missing if is_exchangeable(making.spec)}
    exchange = exchange_of(layout, shard, own) if exchangeable else None
    for making, fingerprint in missing:
        name = making.spec.name
        field = signal_field(name, making.description, making.as_json(fingerprint))
        wanted = exchange if name in exchangeable else None
        found, exchanged = _values(making.spec, layout, shard, own, shards, config, wanted)
        columns[name] = (field, pa.chunked_array([pa.array(found)]))
        others.pop(name, None)
        if name in exchangeable:
            column = exchanged_column(exchanged, len(own))
            others[name] = (exchanged_field(name, len(own)), pa.chunked_array([column]))
    ordered = [of[name] for of in (columns, others) for name in sorted(of)]
    schema = with_kept(SCORED_SCHEMA, [field for field, _ in ordered]).with_metadata(metadata)
    table = pa.Table.from_arrays([*own.columns, *(values for _, values in ordered)], schema=schema)
    with commit_file(path) as out:
        write_table(table, out)
