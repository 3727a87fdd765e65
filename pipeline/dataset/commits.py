"""What all stages share: the fingerprint that guards a resume, and the table of rejections."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from schemas.columns import SCHEMA_VERSION
from schemas.stages import Stage
from schemas.storage import committed_fingerprint
from scoring.config import DeduplicateConfig, ScoreConfig


def deciding_settings(config: Any, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of a configuration that decide a stage's output.

    Args:
        leave_out: fields that change how the work is done but not what comes out.
    """
    values = dataclasses.asdict(config)
    return {name: value for name, value in values.items() if name not in leave_out}


def stage_fingerprint(stage: Stage, settings: dict[str, Any], upstream: Sequence[str]) -> str:
    """Returns 32 hex digits that change with whatever can change a stage's output for a shard.

    Args:
        settings: the configuration that matters to the stage, the identity of a model with it.
        upstream: fingerprints of what the stage reads.
    """
    made_of = json.dumps(
        {
            "stage": stage.value,
            "settings": settings,
            "upstream": list(upstream),
            "schema_version": SCHEMA_VERSION,
        },
        sort_keys=True,
    )
    return hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()


def is_committed(marker: str, fingerprint: str) -> bool:
    """Returns whether the file that a stage writes last stands, with this fingerprint."""
    return committed_fingerprint(marker) == fingerprint


AT_ONCE = "aligngpt:elements_at_once"
"""Annotation of a step of the graph: how many elements a worker takes on at the same time.

A runner of ours gives such a step no smaller parts, so that a worker is not left with one.
"""


def on_accelerator(step: Any, config: ScoreConfig | DeduplicateConfig) -> Any:
    """Returns a step of the graph, asking for workers with a GPU where it must have one."""
    if config.device == "cuda":
        step = step.with_resource_hints(accelerator=config.accelerator)
    return step
