"""The manifest: what made a dataset, what is in it, and how to know that it is whole."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from schemas.columns import SCHEMA_VERSION
from schemas.errors import DatasetError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One train shard."""

    name: str
    """Without extension: `000042`."""
    samples: int
    tar_bytes: int
    tar_sha256: str
    parquet_bytes: int
    parquet_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """A stage's balance: rows_in = kept + the sum of rejected."""

    rows_in: int
    kept: int
    rejected: dict[str, int]
    """Reason to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made this dataset and what is in it."""

    schema_version: int = SCHEMA_VERSION
    aligngpt_version: str
    config: dict[str, Any]
    """The resolved configuration of the job."""
    versions: dict[str, str]
    """Package to version, of what decides the bytes."""
    model: dict[str, str] | None
    """Identity of the scoring model: name, checkpoint, SHA-256 of its weights, precision."""
    rows_in: int
    kept: int
    rejected: dict[str, int]
    """Reason to count, over all stages."""
    stages: dict[str, StageCounts]
    num_levels: int | None
    level_edges: list[dict[str, Any]] | None
    """Of each level: level, its lowest and highest score, its count."""
    samples_per_shard: int
    shards: list[ShardEntry] = field(default_factory=list)

    def to_json(self) -> str:
        """Returns the manifest as JSON, the same text for the same manifest."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Returns the manifest that `to_json` wrote.

        Raises:
            DatasetError: if it is of another schema version, or no manifest.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DatasetError(f"the manifest is not JSON: {error}") from error
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise DatasetError(
                f"the manifest has schema version {version}, this program reads version "
                f"{SCHEMA_VERSION}: use the version of aligngpt that wrote it"
            )
        values["stages"] = {
            stage: StageCounts(**counts) for stage, counts in values["stages"].items()
        }
        values["shards"] = [ShardEntry(**entry) for entry in values["shards"]]
        return cls(**values)
