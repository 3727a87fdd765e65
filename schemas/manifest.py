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
    """Rows of its table."""
    tar_bytes: int
    """Length of the tar."""
    tar_sha256: str
    """Of the tar, 64 hex digits."""
    parquet_bytes: int
    """Length of the table."""
    parquet_sha256: str
    """Of the table, 64 hex digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCounts:
    """A stage's balance: rows_in = kept + the sum of rejected."""

    rows_in: int
    """Rows that came in."""
    kept: int
    """Rows that went on."""
    rejected: dict[str, int]
    """Reason to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelDrift:
    """How data that was levelled by old edges differs from the data that they were cut in."""

    expected_counts: list[int]
    """Samples in each level where the edges were cut."""
    counts: list[int]
    """Samples in each level here, by the same edges."""
    expected_left_out: int | None = None
    """Pairs below the cut or the minimum score where the edges were cut; null if not saved."""
    left_out: int | None = None
    """Pairs below them here; null if it cannot be compared."""
    population_stability_index: float
    """0 is no difference; below 0.1 is usually called stable, above 0.25 a clear shift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelControl:
    """How the pairs of one level do beside exchanged ones."""

    level: int
    """1 to num_levels."""
    pairs: int
    """Those that were held against exchanged ones."""
    beats_ratio: float
    """Share of the exchanged pairs (the same picture, another caption) that they beat."""
    beats_interval: tuple[float, float]
    """Between what it lies, at 95 %."""
    by_chance: float
    """What that share would be if the score told nothing: a level is cut by the score itself."""
    auc: float
    """How often one of them scores above an exchanged pair of any picture."""
    auc_interval: tuple[float, float]
    """Between what it lies, at 95 %."""
    exchanged_ratio: float | None
    """Share of all exchanged pairs that score as this level does; null where levels overlap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupControl:
    """Pairs that the score tells much less of than of the others."""

    kind: str
    """What they have in common: `source`, `host`, `script`, or the column of their language."""
    name: str
    """Which of them."""
    pairs: int
    """Those that were held against exchanged ones of the same group."""
    beats_ratio: float
    """Share of these that they beat."""
    beats_interval: tuple[float, float]
    """Between what it lies, at 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreControl:
    """Whether the score tells pairs from exchanged ones: pictures with captions of others."""

    signal: str
    """The score that is meant."""
    pairs: int
    """Scored pairs that were held against exchanged ones: all, or an even choice of shards."""
    beats_ratio: float
    """Share of the exchanged pairs (the same picture, another caption) that they beat; one half if
    the score tells nothing."""
    beats_interval: tuple[float, float]
    """Between what it lies, at 95 %."""
    auc: float
    """How often a pair scores above an exchanged pair of any picture: the area under the curve."""
    auc_interval: tuple[float, float]
    """Between what it lies, at 95 %."""
    warning: str | None
    """What to think of the levels where that is near one half; null where it is not."""
    levels: list[LevelControl]
    """By level; empty where there are none."""
    standing_out: list[GroupControl]
    """Sources, hosts, scripts and languages that the score tells much less of."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ScoreControl":
        """Returns what JSON holds."""
        made = {
            "levels": [LevelControl(**_intervals(row)) for row in values["levels"]],
            "standing_out": [GroupControl(**_intervals(row)) for row in values["standing_out"]],
        }
        return cls(**{**_intervals(values), **made})


def _control_from(values: dict[str, Any] | None) -> ScoreControl | None:
    return None if values is None else ScoreControl.from_dict(values)


def _intervals(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values with tuples where JSON has lists of two numbers."""
    return {
        name: tuple(value) if name.endswith("_interval") else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalSummary:
    """A signal: a number a sample beside its clip_score."""

    name: str
    """Of its column."""
    description: str
    """What it is."""
    made: dict[str, str]
    """How it was made: what it can be reproduced from, with its fingerprint in the first shard."""
    samples: int
    """Those that have it."""
    lowest: float | None
    """Of them; null without any."""
    mean: float | None
    """Likewise."""
    highest: float | None
    """Likewise."""
    level_means: dict[str, float]
    """Level to the mean of its samples."""
    control: ScoreControl | None = None
    """Whether it tells pairs from exchanged ones; null where that cannot be said."""
    no_control: str | None = None
    """Why it cannot: it is not about the pair, or its model would have to run again."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SignalSummary":
        """Returns what JSON holds."""
        return cls(**{**values, "control": _control_from(values.get("control"))})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecaptionSummary:
    """Captions that a model wrote for the pictures of the lowest levels."""

    made: dict[str, Any]
    """How: model, hash of its files, prompt, precision, versions; of a merger, those of the first
    dataset that has any."""
    asked: int
    """Samples whose pictures the model was asked about."""
    taken: int
    """Those of them that have its caption, since it scores better."""
    refused: dict[str, int]
    """Why what it wrote is no caption, to how often."""
    score_before: float | None
    """Mean score of the samples asked about with the caption before; null without any."""
    score_after: float | None
    """The same with the caption that they have now."""
    levels_before: dict[str, int]
    """Level to the number of all samples that it had before."""
    moved: dict[str, dict[str, int]]
    """Level before to level now to samples, of those that have the model's caption."""
    beats_ratio: float | None = None
    """How often the model's caption scores above what it wrote of another picture, a tie counting
    half; null where there is no such control."""
    beats_interval: tuple[float, float] | None = None
    """Its 95 % interval."""
    exchanged_taken: int | None = None
    """Samples whose caption before would have lost to what the model wrote of another picture."""
    warning: str | None = None
    """What to think of captions that fit their own pictures no better; null if there is no worry.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """A dataset that samples of this one were taken from."""

    folder: str
    """Where it was."""
    manifest_sha256: str
    """Of its manifest as it was then, 64 hex digits."""
    samples: int
    """Samples that it held."""
    taken: int
    """Of them, those that are here."""
    config: dict[str, Any]
    """The configuration that made it."""
    warnings: list[str] = field(default_factory=list)
    """What its manifest warned of its levels, its score and its signals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What made this dataset and what is in it."""

    schema_version: int = SCHEMA_VERSION
    """Of this program; a manifest of another version is refused."""
    aligngpt_version: str
    """Of the program that made the dataset."""
    config: dict[str, Any]
    """The resolved configuration of the job."""
    versions: dict[str, str]
    """Package to version, of what decides the bytes."""
    model: dict[str, str] | None
    """Identity of the scoring model: name, checkpoint, SHA-256 of its weights, precision."""
    rows_in: int
    """Rows of the input."""
    kept: int
    """Samples in the train shards: rows_in = kept + the sum of rejected."""
    rejected: dict[str, int]
    """Reason to count, over all stages."""
    stages: dict[str, StageCounts]
    """Stage to its balance, in the order of the stages."""
    num_levels: int | None
    """Number of alignment levels; null for a dataset that is not levelled."""
    level_edges: list[dict[str, Any]] | None
    """Of each level: `level`, `lowest_score`, `highest_score` (null if empty) and `count`."""
    level_drift: LevelDrift | None = None
    """Where levels.edges_from gave the edges: how the data moved against them."""
    score_control: ScoreControl | None = None
    """Whether the score tells pairs from exchanged ones; null without stored embeddings."""
    level_control: ScoreControl | None = None
    """The same of what decides the levels (`levels.by`), as the levels mean no more than it does;
    null where that cannot be said."""
    no_level_control: str | None = None
    """Why it cannot; null where it can, and where levels are not decided here."""
    signals: list[SignalSummary] = field(default_factory=list)
    """The further numbers that `score.signals` asked for; none by default."""
    recaption: RecaptionSummary | None = None
    """Where a model wrote captions: what became of them; null where none did."""
    truncated_captions: int | None = None
    """Scored captions longer than the model's context; null for a dataset that is not scored."""
    parents: list[Parent] = field(default_factory=list)
    """Of a selection or a merger, the datasets that it was made from; else none."""
    where: str | None = None
    """Of a selection, the SQL condition that its samples fulfil; null for all samples."""
    samples_per_shard: int
    """Samples in each train shard; only the last has fewer."""
    shards: list[ShardEntry] = field(default_factory=list)
    """The train shards, in their order."""

    @property
    def warnings(self) -> list[str]:
        """What to think of levels, score, signals and captions that hardly tell anything."""
        signals = [signal.control for signal in self.signals]
        controls = [self.level_control, self.score_control, *signals, self.recaption]
        found = [control.warning for control in controls if control is not None]
        return [*dict.fromkeys(warning for warning in found if warning is not None)]

    @property
    def handed_on_warnings(self) -> list[str]:
        """Its own warnings, and of a selection or a merger those of the datasets before it."""
        before = (warning for parent in self.parents for warning in parent.warnings)
        return [*dict.fromkeys([*self.warnings, *before])]

    def to_json(self) -> str:
        """Returns the manifest as JSON, the same text for the same manifest."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

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
        values["parents"] = [Parent(**parent) for parent in values.get("parents", [])]
        values["shards"] = [ShardEntry(**entry) for entry in values["shards"]]
        if values.get("level_drift") is not None:
            values["level_drift"] = LevelDrift(**values["level_drift"])
        values["signals"] = [SignalSummary.from_dict(row) for row in values.get("signals", [])]
        if values.get("recaption") is not None:
            interval = values["recaption"].get("beats_interval")
            values["recaption"] = RecaptionSummary(
                **{**values["recaption"], "beats_interval": interval and tuple(interval)}
            )
        for name in ("score_control", "level_control"):
            values[name] = _control_from(values.get(name))
        return cls(**values)
