"""Rescore: recomputes a sample of a dataset's scores from what is stored beside them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captions import caption_choices
from pipeline.fetched_images import read_images
from pipeline.scored_shard import Provenance, read_provenance
from pipeline.storage import list_files, open_read
from schemas.columns import read_table
from schemas.errors import DatasetError
from schemas.records import FETCHED_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout
from scoring.checkpoints import deciding_identity
from scoring.clip import ClipScorer, shared_scorer
from scoring.config import Precision, ScoreConfig

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3}
"""Largest difference that other batch-mates, threads or processors may make.

Source: bf16 scores of ViT-B-32 were within 1.8e-3 of fp32's on CPU.
"""

MOST_SHARDS = 64
"""Shards that a sample is spread over: reading one means walking through its tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A pair whose score was computed again."""

    key: str
    stored: float
    recomputed: float

    @property
    def size(self) -> float:
        """How far the two scores are apart."""
        return abs(self.stored - self.recomputed)


@dataclass(frozen=True, slots=True, kw_only=True)
class RescoreReport:
    """What came of computing a sample of the scores again."""

    model: dict[str, str]
    """Identity of the model that made the stored scores."""
    changed_versions: dict[str, str]
    """Library to "then -> now", where it is another version now."""
    tolerance: float
    sampled: int
    mean_difference: float
    largest_difference: float
    worst: list[Difference]
    """The ten that differ most, most first."""

    @property
    def is_reproduced(self) -> bool:
        """Whether every score of the sample is within the tolerance."""
        return self.largest_difference <= self.tolerance

    def __str__(self) -> str:
        """Returns the report for people."""
        verdict = "reproduced" if self.is_reproduced else "NOT reproduced"
        name = f"{self.model['model']} {self.model['pretrained']} {self.model['precision']}"
        lines = [
            f"{verdict}: {self.sampled} scores of {name}, tolerance {self.tolerance:g}",
            f"largest difference {self.largest_difference:.2e}, mean {self.mean_difference:.2e}",
        ]
        lines += [f"{name}: {change}" for name, change in self.changed_versions.items()]
        if not self.is_reproduced:
            lines += [
                f"{row.key}: stored {row.stored:.6f}, now {row.recomputed:.6f}"
                for row in self.worst
                if row.size > self.tolerance
            ]
        return "\n".join(lines)


def rescore_dataset(root: str, sample: int, model: str = "", pretrained: str = "") -> RescoreReport:
    """Returns how far the stored scores are from those computed again.

    The sample is the same at every call: rows evenly spaced over the shards.

    Args:
        model: where the scoring model is now, if it was a local file and has moved since.
        pretrained: where its weights are now, likewise.

    Raises:
        DatasetError: if no pair is scored, or the model is not the one that made the scores.
        ConfigError: if the model cannot be loaded.
    """
    if sample < 1:
        raise DatasetError(f"a sample has at least 1 row, got {sample}")
    layout = DatasetLayout(root)
    paths = list_files(f"{layout.root}/scored", ".parquet")
    shards = [int(path.rsplit("/", 1)[-1].split(".")[0]) for path in paths]
    if not shards:
        raise DatasetError(f"{root} holds no scores: score it first")
    chosen = _evenly(shards, min(len(shards), sample, MOST_SHARDS))
    provenance = read_provenance(layout, chosen[0])
    scorer = _same_model(provenance, model, pretrained)
    differences: list[Difference] = []
    for place, shard in enumerate(chosen):
        if read_provenance(layout, shard).model != provenance.model:
            _require_same(provenance.model, read_provenance(layout, shard).model, f"shard {shard}")
        count = sample // len(chosen) + (place < sample % len(chosen))
        differences += _rescore_shard(layout, shard, scorer, count)
    if not differences:
        raise DatasetError(
            f"{root} holds no scored pair to score again: all shards looked at are empty"
        )
    return _report(provenance, scorer, differences)


def _same_model(provenance: Provenance, model: str, pretrained: str) -> ClipScorer:
    """Returns the model that made the scores.

    Raises:
        DatasetError: if what lies under its name now is another model.
    """
    stored = provenance.config
    config = ScoreConfig(
        model=model or stored.model,
        pretrained=pretrained or stored.pretrained,
        prompt_template=stored.prompt_template,
        precision=stored.precision,
        batch_size=stored.batch_size,
        threads=min(stored.threads, os.cpu_count() or 1),
    )
    scorer = shared_scorer(config)
    _require_same(provenance.model, scorer.identity, f"{config.model} {config.pretrained}")
    return scorer


def _require_same(stored: dict[str, str], found: dict[str, str], where: str) -> None:
    then, now = deciding_identity(stored), deciding_identity(found)
    changes = [
        f"{name} was {then.get(name)}, is {now.get(name)}"
        for name in sorted(then | now)
        if name not in ("model", "pretrained") and then.get(name) != now.get(name)
    ]
    if changes:
        raise DatasetError(
            f"{where} is not the model that made these scores: {'; '.join(changes)}. "
            "Give the path of the model that did, or score the dataset again"
        )


def _rescore_shard(
    layout: DatasetLayout, shard: int, scorer: ClipScorer, count: int
) -> list[Difference]:
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "clip_score"])
    rows = _evenly(range(scored.num_rows), min(count, scored.num_rows))
    if not rows:
        return []
    scored = scored.take(pa.array(rows))
    wanted = scored["key"].to_pylist()
    with open_read(layout.fetched(shard, "parquet")) as file:
        fetched = read_table(file, FETCHED_SCHEMA, ["key", "caption", "captions", "image_format"])
    fetched = fetched.filter(pc.is_in(fetched["key"], pa.array(wanted)))
    if fetched["key"].to_pylist() != wanted:
        raise DatasetError(
            f"{layout.scored(shard)} has rows that are not in the fetched shard: score it again"
        )
    images = read_images(layout, shard, wanted, fetched["image_format"].to_pylist())
    scores = scorer.score(images, caption_choices(fetched))
    stored = scored["clip_score"].to_pylist()
    return [
        Difference(key=key, stored=before, recomputed=float(now))
        for key, before, now in zip(wanted, stored, scores.clip_score, strict=True)
    ]


def _report(
    provenance: Provenance, scorer: ClipScorer, differences: list[Difference]
) -> RescoreReport:
    sizes: npt.NDArray[np.float64] = np.array([row.size for row in differences])
    sizes = np.where(np.isfinite(sizes), sizes, np.inf)
    changed = {
        name.removeprefix("version."): f"{then} -> {scorer.identity.get(name)}"
        for name, then in provenance.model.items()
        if (name.startswith("version.") or name == "device") and scorer.identity.get(name) != then
    }
    return RescoreReport(
        model=provenance.model,
        changed_versions=changed,
        tolerance=TOLERANCES[provenance.config.precision],
        sampled=len(differences),
        mean_difference=float(sizes.mean()),
        largest_difference=float(sizes.max()),
        worst=sorted(differences, key=lambda row: row.size, reverse=True)[:10],
    )


def _evenly(items: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the items, evenly spaced."""
    return [items[index * len(items) // count] for index in range(count)]
