"""Rescore: recomputes a sample of a dataset's scores from what is stored beside them."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dataset.captions import caption_choices
from pipeline.dataset.derivation import read_derivation
from pipeline.dataset.guard import stored_config
from pipeline.dataset.manifests import refuse_no_folder
from pipeline.dataset.tars import read_images
from pipeline.score.looks import COSINE_TOLERANCES
from pipeline.score.shard import Provenance, read_provenance
from pipeline.score.signals import SignalDifference, read_signals_again
from schemas.columns import read_table
from schemas.errors import DatasetError
from schemas.progress import at_work, shown
from schemas.records import FETCHED_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout, shard_number
from schemas.stages import Stage
from schemas.storage import list_files, open_read
from scoring.clip.checkpoints import deciding_identity
from scoring.clip.scorer import ClipScorer, shared_scorer
from scoring.config import ScoreConfig
from scoring.images.prepare import BROKEN_FILE_ERRORS

MOST_SHARDS = 64
"""Shards that a sample is spread over, unless they hold too few rows: reading one means walking
through its tar."""


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
    signals: dict[str, SignalDifference]
    """Signal to its largest difference."""

    @property
    def is_reproduced(self) -> bool:
        """Whether every score of the sample is within the tolerance."""
        is_same = all(signal.size <= signal.tolerance for signal in self.signals.values())
        return self.largest_difference <= self.tolerance and is_same

    def __str__(self) -> str:
        """Returns the report for people."""
        verdict = "reproduced" if self.is_reproduced else "NOT reproduced"
        name = f"{self.model['model']} {self.model['pretrained']} {self.model['precision']}"
        lines = [
            f"{verdict}: {self.sampled} scores of {name}, tolerance {self.tolerance:g}",
            f"largest difference {self.largest_difference:.2e}, mean {self.mean_difference:.2e}",
        ]
        lines += [
            f"signal {name}: largest difference {signal.size:.2e}, tolerance {signal.tolerance:g}"
            for name, signal in self.signals.items()
        ]
        lines += [f"{name}: {change}" for name, change in self.changed_versions.items()]
        if not self.is_reproduced:
            lines += [
                f"{row.key}: stored {row.stored:.6f}, now {row.recomputed:.6f}"
                for row in self.worst
                if row.size > self.tolerance
            ]
        return "\n".join(lines)


def rescore_dataset(
    root: str,
    sample: int,
    model: str = "",
    pretrained: str = "",
    *,
    itm_trust_remote_code: bool = False,
) -> RescoreReport:
    """Returns how far the stored scores are from those computed again.

    The sample is the same at every call: rows evenly spaced over the shards' rows, all of them if
    there are no more than asked for.

    Args:
        model: where the scoring model is now, if it was a local file and has moved since.
        pretrained: where its weights are now, likewise.
        itm_trust_remote_code: whether code that models of `itm:` signals bring may run.

    Raises:
        DatasetError: if no pair is scored, the model is not the one that made the scores, or what
            they were made from is missing or damaged.
        ConfigError: if there is no such folder, or the model cannot be loaded.
    """
    if sample < 1:
        raise DatasetError(f"a sample has at least 1 row, got {sample}")
    refuse_no_folder(root)
    layout = DatasetLayout(root)
    paths = list_files(layout.folder(Stage.SCORE), ".parquet")
    shards = [shard_number(path) for path in paths]
    if not shards:
        raise DatasetError(f"{root} holds no scores: {_where_scores_are(layout)}")
    rows_of = _sample_rows(layout, shards, sample)
    if not rows_of:
        raise DatasetError(f"{root} holds no scored pair to score again: all its shards are empty")
    provenance = read_provenance(layout, next(iter(rows_of)))
    with at_work("loading the model"):
        scorer = _same_model(provenance, model, pretrained)
    differences: list[Difference] = []
    places = rows_of.items()
    for shard, rows in shown("Scoring again", places, len(places), unit="shard"):
        own = read_provenance(layout, shard)
        if own.model != provenance.model:
            _require_same(provenance.model, own.model, f"shard {shard}")
        _check_widths(layout, shard, own)
        differences += _rescore_shard(layout, shard, scorer, rows)
    config = replace(provenance.config, itm_trust_remote_code=itm_trust_remote_code)
    signals = read_signals_again(layout, rows_of, shards, config)
    return _report(provenance, scorer, differences, signals)


def _where_scores_are(layout: DatasetLayout) -> str:
    """Returns what to do about a dataset that keeps no tables of scores."""
    derivation = read_derivation(layout)
    if derivation is not None:
        parents = " or ".join(parent.folder for parent in derivation.parents)
        return f"they lie where its samples were taken from, {parents}"
    config = stored_config(layout)
    if config is not None and not config.get("is_scored", True):
        return "instruction samples are not scored"
    return "run `score` first"


def _sample_rows(layout: DatasetLayout, shards: list[int], sample: int) -> dict[int, list[int]]:
    """Returns the rows to score again of each shard that has any, as many in all as asked for."""
    looked_at = min(len(shards), sample, MOST_SHARDS)
    counts: dict[int, int] = {}
    while True:
        chosen = _evenly(shards, looked_at)
        counts |= {s: _count_rows(layout, s) for s in chosen if s not in counts}
        places = [(shard, row) for shard in chosen for row in range(counts[shard])]
        if len(places) >= sample or looked_at == len(shards):
            break
        looked_at = min(2 * looked_at, len(shards))
    rows_of: dict[int, list[int]] = {}
    for place in _evenly(range(len(places)), min(sample, len(places))):
        shard, row = places[place]
        rows_of.setdefault(shard, []).append(row)
    return rows_of


def _count_rows(layout: DatasetLayout, shard: int) -> int:
    path = layout.scored(shard)
    with _explaining_reads(path, f"score shard {shard} again"), open_read(path) as file:
        return int(pq.read_metadata(file).num_rows)


@contextmanager
def _explaining_reads(path: str, remedy: str) -> Iterator[None]:
    """Raises `DatasetError` where a file of the dataset that a block reads is not there or damaged.

    Args:
        remedy: what to do about it.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: {remedy}") from error
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{path} is no whole Parquet file ({error}): {remedy}") from error


def _check_widths(layout: DatasetLayout, shard: int, provenance: Provenance) -> None:
    """Raises `DatasetError` unless the embeddings of every row are as wide as the model's."""
    path, names = layout.scored(shard), ["image_embedding", "text_embedding"]
    with open_read(path) as file:
        table = read_table(file, SCORED_SCHEMA, ["key", *names])
    keeps = provenance.config.keep_embeddings
    width = int(provenance.model["embedding_width"]) if keeps else 0
    for name in names:
        widths = pc.fill_null(pc.list_value_length(table[name]), 0)
        wrong = pc.indices_nonzero(pc.not_equal(widths, width))
        if len(wrong):
            row = wrong[0].as_py()
            raise DatasetError(
                f"{path}: {name} of pair {table['key'][row]} has {widths[row]} values in place of "
                f"{width}: score shard {shard} again"
            )


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
    layout: DatasetLayout, shard: int, scorer: ClipScorer, rows: list[int]
) -> list[Difference]:
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "clip_score"]).take(pa.array(rows))
    wanted = scored["key"].to_pylist()
    path = layout.fetched(shard, "parquet")
    with _explaining_reads(path, _fetched_again(shard)), open_read(path) as file:
        fetched = read_table(file, FETCHED_SCHEMA, ["key", "caption", "captions", "image_format"])
    fetched = fetched.filter(pc.is_in(fetched["key"], pa.array(wanted)))
    if fetched["key"].to_pylist() != wanted:
        raise DatasetError(
            f"{layout.scored(shard)} has rows that are not in the fetched shard: score it again"
        )
    images = _open_images(layout, shard, wanted, fetched["image_format"].to_pylist())
    scores = scorer.score(images, caption_choices(fetched))
    stored = scored["clip_score"].to_pylist()
    return [
        Difference(key=key, stored=before, recomputed=float(now))
        for key, before, now in zip(wanted, stored, scores.clip_score, strict=True)
    ]


def _open_images(
    layout: DatasetLayout, shard: int, keys: list[str], image_formats: list[str | None]
) -> Iterator[Image.Image]:
    """Yields the decoded image of each row, of several the first."""
    path = layout.fetched(shard, "tar")
    with _explaining_reads(path, _fetched_again(shard)):
        images = read_images(layout, shard, keys, image_formats)
        for key, encoded in zip(keys, images, strict=True):
            try:
                image = Image.open(io.BytesIO(encoded))
                image.load()
            except BROKEN_FILE_ERRORS as error:
                raise DatasetError(
                    f"{path}: the image of pair {key} cannot be decoded "
                    f"({type(error).__name__}): fetch shard {shard} again"
                ) from error
            yield image


def _fetched_again(shard: int) -> str:
    return f"put back what was fetched, or fetch shard {shard} again"


def _report(
    provenance: Provenance,
    scorer: ClipScorer,
    differences: list[Difference],
    signals: dict[str, SignalDifference],
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
        tolerance=COSINE_TOLERANCES[provenance.config.precision],
        sampled=len(differences),
        mean_difference=float(sizes.mean()),
        largest_difference=float(sizes.max()),
        worst=sorted(differences, key=lambda row: row.size, reverse=True)[:10],
        signals=signals,
    )


def _evenly(items: Sequence[int], count: int) -> list[int]:
    """Returns `count` of the items, evenly spaced."""
    return [items[index * len(items) // count] for index in range(count)]
