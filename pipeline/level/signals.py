"""What decides the levels beside the score: a signal to rank by, a condition on what is kept."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.commits import deciding_settings
from schemas.columns import SIGNAL_FIELD, read_table, signal_fields
from schemas.errors import ConfigError, DatasetError
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.storage import open_read
from scoring.config import LevelConfig
from scoring.levels.ranks import parse_rank_mean

SCORE = "clip_score"


def uses_signals(config: LevelConfig) -> bool:
    """Returns whether more than the score decides the levels."""
    return config.by != SCORE or config.keep is not None


def level_settings(config: LevelConfig, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the settings that decide the levels; those that came later only where they do."""
    defaults = (("by", config.by == SCORE), ("keep", config.keep is None))
    later = [name for name, is_default in defaults if is_default]
    return deciding_settings(config, leave_out=[*leave_out, *later])


def check_level_settings(config: LevelConfig, signals: list[str]) -> tuple[str, ...]:
    """Returns the signals that the levels need.

    Args:
        signals: those that the dataset has, or will have.

    Raises:
        ConfigError: if one is not there, or the condition is none.
    """
    mean = parse_rank_mean(config.by)
    ranked = [config.by] if mean is None else mean.names
    named = [name for name in ranked if name != SCORE]
    if config.keep is not None:
        # DuckDB takes a while to start: only who has a condition waits for it.
        from pipeline.dataset.conditions import checked_condition

        schema = pa.schema([(name, pa.float32()) for name in (SCORE, *signals)])
        columns = checked_condition(config.keep, schema, "--levels.keep").columns
        named += [name for name in columns if name != SCORE]
    missing = sorted(set(named) - set(signals))
    if missing:
        raise ConfigError(
            f"levels.by {missing[0]!r} is neither clip_score nor a signal of this dataset "
            f"({', '.join(signals) or 'it has none'}): add it by --score.signals and run `score`"
        )
    return tuple(sorted(set(named)))


def signals_of(layout: DatasetLayout, shard: int) -> dict[str, str]:
    """Returns the signals of a scored shard, with the fingerprint of each."""
    with open_read(layout.scored(shard)) as file:
        fields = signal_fields(pq.read_schema(file))
    return {field.name: json.loads(field.metadata[SIGNAL_FIELD])["fingerprint"] for field in fields}


def signal_fingerprint(layout: DatasetLayout, shard: int, config: LevelConfig) -> str:
    """Returns what tells the signals of a shard that decide its levels from others; empty if none.

    Raises:
        ConfigError: if one is not there.
    """
    if not uses_signals(config):
        return ""
    found = signals_of(layout, shard)
    return "".join(f" {name}:{found[name]}" for name in check_level_settings(config, [*found]))


def signal_rows(
    layout: DatasetLayout,
    shard: int,
    config: LevelConfig,
    keys: pa.Array,
    clip_score: NDArray[np.float32],
) -> pa.Table:
    """Returns the columns that decide the levels of some pairs: their score, and signals."""
    score = pa.chunked_array([pa.array(clip_score)])
    if not uses_signals(config):
        return pa.table({SCORE: score})
    names = list(check_level_settings(config, [*signals_of(layout, shard)]))
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", *names])
    rows = scored.take(pc.index_in(keys, value_set=scored["key"].combine_chunks()))
    return rows.select(names).append_column(SCORE, score)


def may_stay(rows: pa.Table, config: LevelConfig) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns which pairs fulfil the condition, and which the minimum score, (n,) each.

    Args:
        rows: as `signal_rows` gives them.
    """
    is_high_enough = at_least(rows[SCORE].to_numpy(), config.minimum_score)
    if config.keep is None:
        return np.ones(len(rows), np.bool_), is_high_enough
    return _fulfil(config.keep, rows), is_high_enough


def refuse_nan(path: str, name: str, value: NDArray[np.float32]) -> None:
    """Raises `DatasetError`, which names the column, if pairs cannot be ranked by a value.

    Args:
        path: of the scored shard.
        value: of the pairs that may stay.
    """
    if np.isnan(value).any():
        raise DatasetError(
            f"{path}: {name} of {int(np.isnan(value).sum())} pairs is not a number, so that they "
            f'have no rank: leave them out, as by --levels.keep "not isnan({name})"'
        )


def at_least(scores: NDArray[np.float32], minimum: float | None) -> NDArray[np.bool_]:
    """Returns which scores are not below the minimum, (n,); compared in float32 as stored."""
    if minimum is None:
        return np.ones(len(scores), np.bool_)
    return scores >= np.float32(minimum)


def _fulfil(text: str, rows: pa.Table) -> NDArray[np.bool_]:
    from pipeline.dataset.conditions import ConditionRunner, checked_condition

    runner = ConditionRunner(checked_condition(text, rows.schema, "--levels.keep"))
    try:
        return runner.matches(rows)
    finally:
        runner.close()
