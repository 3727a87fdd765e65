"""A recaptioned shard: which of its pictures get a caption by a model, and what becomes of it.

Free of Beam, so that a machine with a GPU needs no more than the models' libraries.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.captions import chosen_captions
from pipeline.dataset.commits import deciding_settings, is_committed, stage_fingerprint
from pipeline.dataset.edges import read_edges
from pipeline.dataset.fetched_rows import fetched_rows
from pipeline.dataset.key_hashes import key_hashes
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.tars import read_images
from pipeline.dataset.worktimes import timed
from pipeline.recaption.rules import JudgedCaption, judged
from schemas.columns import read_table, write_table
from schemas.errors import DatasetError
from schemas.memory import large_imports
from schemas.records import LEVELLED_SCHEMA, RECAPTIONED_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, committed_fingerprint, open_read, remove
from scoring.config import RecaptionConfig, ScoreConfig
from scoring.control import own_scores
from scoring.devices import with_precision
from scoring.levels.edges import levels_from_edges

PAIR = ["caption", "captions", "conversations", "image_format", "more_urls", "source"]


@dataclass(frozen=True, slots=True)
class Asked:
    """The pairs of a shard whose pictures get a caption, n of them."""

    rows: NDArray[np.intp]
    """Where they stand among the levelled pairs."""
    keys: pa.ChunkedArray
    captions: list[str]
    """As they are; of several the best scored."""
    formats: list[str]
    sources: list[str]


def recaption_shard(
    layout: DatasetLayout, shard: int, config: RecaptionConfig, score: ScoreConfig
) -> None:
    """Commits what a shard's pairs are packed with, unless that already stands.

    Raises:
        DatasetError: if the shard is not levelled, or is not what its tables say.
        ConfigError: if a model cannot be loaded.
    """
    score = with_precision(dataclasses.replace(score, signals=()))
    made = caption_making(config, score)
    marker = layout.recaptioned(shard)
    upstream = committed_fingerprint(layout.levelled(shard))
    if upstream is None:
        raise DatasetError(f"{layout.levelled(shard)} is missing: level the dataset first")
    fingerprint = stage_fingerprint(Stage.RECAPTION, _deciding(made), [upstream])
    if is_committed(marker, fingerprint):
        return
    remove(marker)
    with timed(layout, Stage.RECAPTION, "write") as work:
        table = _recaptioned(layout, shard, config, score)
        with commit_file(marker) as out:
            told = {"fingerprint": fingerprint, "recaption": json.dumps(made, sort_keys=True)}
            write_table(table, out, told)
        work.rows = table.num_rows


def caption_making(config: RecaptionConfig, score: ScoreConfig) -> dict[str, Any]:
    """Returns what captions by a model are made with: what they can be reproduced from.

    Args:
        score: with its precision settled.

    Raises:
        ConfigError: if the model is not to be had.
    """
    # torch and transformers take seconds to start: a job that writes no caption does without.
    with large_imports():
        from scoring.itm.model import itm_identity, itm_versions
        from scoring.itm.writer import writer_model
    assert config.model is not None
    return {
        **deciding_settings(config, leave_out=["model", "trust_remote_code"]),
        "model": model_name(config.model),
        **itm_identity(writer_model(config)),
        "precision": score.precision,
        "threads": score.threads,
        "versions": itm_versions(),
    }


def model_name(model: str) -> str:
    """Returns what a model is called in a dataset: its name on the Hub, or that of its folder."""
    return model if model.count("/") == 1 and model[0] not in "./~" else _last(model)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _deciding(made: dict[str, Any]) -> dict[str, Any]:
    """Returns what decides the captions: versions move them within rounding only."""
    deciding = {name: value for name, value in made.items() if name not in ("versions", "model")}
    return {**deciding, "columns": RECAPTIONED_SCHEMA.names}


def _recaptioned(
    layout: DatasetLayout, shard: int, config: RecaptionConfig, score: ScoreConfig
) -> pa.Table:
    """Returns the table of a shard: its levelled pairs, some with another caption."""
    with open_read(layout.levelled(shard)) as file:
        levelled = read_table(file, LEVELLED_SCHEMA)
    with ShardProgress(layout, Stage.RECAPTION, shard, len(levelled)) as progress:
        asked = asked_pairs(layout, shard, levelled, config)
        others = len(levelled) - len(asked.rows)
        written = _write(layout, shard, asked, config, score, progress, others)
        scores = _score(layout, shard, asked, written, score)
        table = _with_captions(layout, levelled, asked, written, scores, config)
        progress.update(len(table), 0)
    return table


def asked_pairs(
    layout: DatasetLayout, shard: int, levelled: pa.Table, config: RecaptionConfig
) -> Asked:
    """Returns the pairs of the levels that are asked for: a caption with one picture each.

    Conversations are left as they are, and so are samples of several pictures.
    """
    wanted = pa.array(config.levels, pa.int64())
    is_asked = pc.is_in(levelled["alignment_level"].cast(pa.int64()), value_set=wanted)
    rows = np.flatnonzero(is_asked.to_numpy())
    pairs = fetched_rows(layout, shard, levelled["key"].take(pa.array(rows)), PAIR)
    is_pair = pc.and_(
        pc.and_(pc.is_null(pairs["conversations"]), pc.is_null(pairs["more_urls"])),
        pc.is_valid(pairs["image_format"]),
    )
    rows, pairs = rows[np.asarray(is_pair.to_numpy(), np.bool_)], pairs.filter(is_pair)
    keys = levelled["key"].take(pa.array(rows))
    return Asked(
        rows,
        keys,
        chosen_captions(pairs, _caption_index(layout, shard, keys)),
        pairs["image_format"].to_pylist(),
        pairs["source"].to_pylist(),
    )


def _caption_index(layout: DatasetLayout, shard: int, keys: pa.ChunkedArray) -> list[int]:
    """Returns which of several captions scored best, for each key."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "caption_index"])
    places = pc.index_in(keys, value_set=scored["key"].combine_chunks())
    index: list[int] = pc.fill_null(scored["caption_index"].take(places), 0).to_pylist()
    return index


def _write(
    layout: DatasetLayout,
    shard: int,
    asked: Asked,
    config: RecaptionConfig,
    score: ScoreConfig,
    progress: ShardProgress,
    others: int,
) -> list[JudgedCaption]:
    """Returns what the model writes of each picture that it is asked about."""
    if not len(asked.rows):
        return []
    with large_imports():
        from scoring.itm.writer import shared_writer
    images = read_images(layout, shard, asked.keys.to_pylist(), asked.formats)
    writer = shared_writer(config, score)
    written = writer.write(images, lambda done: progress.update(others + done, 0))
    return [judged(one.text, one.is_finished) for one in written]


def _score(
    layout: DatasetLayout,
    shard: int,
    asked: Asked,
    written: list[JudgedCaption],
    score: ScoreConfig,
) -> NDArray[np.float32]:
    """Returns the scores of what was written, (n, 2); NaN where it is no caption.

    The second is of the picture with what was written of the next one in place of its own.
    """
    found = np.full((len(written), 2), np.nan, np.float32)
    good = [row for row, caption in enumerate(written) if caption.refused is None]
    if good:
        with large_imports():
            from scoring.clip.scorer import shared_scorer
        keys = asked.keys.take(pa.array(good)).to_pylist()
        images = read_images(layout, shard, keys, [asked.formats[row] for row in good])
        texts = [written[row].text or "" for row in good]
        scores = shared_scorer(score).score(images, texts)
        found[good, 0] = scores.clip_score
        if len(good) > 1:
            next_text = np.roll(scores.text_embedding, -1, axis=0)
            found[good, 1] = own_scores(scores.image_embedding, next_text)
    return found


def _with_captions(
    layout: DatasetLayout,
    levelled: pa.Table,
    asked: Asked,
    written: list[JudgedCaption],
    own_and_exchanged: NDArray[np.float32],
    config: RecaptionConfig,
) -> pa.Table:
    """Returns the levelled pairs with what became of each: the better caption counts."""
    scores = own_and_exchanged[:, 0]
    final = np.array(levelled["clip_score"].to_numpy(), np.float32)
    levels = np.array(levelled["alignment_level"].to_numpy(), np.int8)
    before, level_before = final[asked.rows], levels[asked.rows]
    is_better = scores > before  # never so of NaN: what is no caption does not count
    changed = asked.rows[is_better]
    final[changed] = scores[is_better]
    sources = [source for source, better in zip(asked.sources, is_better, strict=True) if better]
    levels[changed] = levels_by_edges(
        layout, levelled["key"].take(pa.array(changed)), final[changed], sources
    )
    is_finite = np.isfinite(scores)
    assert config.model is not None
    told: dict[str, list[Any]] = {
        "is_recaptioned": is_better.tolist(),
        "original_caption": list(asked.captions),
        "original_score": before.tolist(),
        "original_level": level_before.tolist(),
        "model_caption": [caption.text for caption in written],
        "model_score": _or_none(scores),
        "exchanged_score": _or_none(own_and_exchanged[:, 1]),
        "model_refused": [
            caption.refused or (None if finite else "not_finite")
            for caption, finite in zip(written, is_finite, strict=True)
        ],
        "caption_model": [model_name(config.model)] * len(written),
    }
    columns: dict[str, Any] = {
        "key": levelled["key"].combine_chunks(),
        "clip_score": final,
        "alignment_level": levels,
        **{name: _spread(values, asked.rows, len(levelled)) for name, values in told.items()},
    }
    arrays = [pa.array(columns[field.name], field.type) for field in RECAPTIONED_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=RECAPTIONED_SCHEMA)


def _or_none(scores: NDArray[np.float32]) -> list[float | None]:
    return [float(score) if np.isfinite(score) else None for score in scores]


def _spread(values: list[Any], rows: NDArray[np.intp], count: int) -> list[Any]:
    """Returns values at their rows among `count`, None at all others."""
    found: list[Any] = [None] * count
    for row, value in zip(rows.tolist(), values, strict=True):
        found[row] = value
    return found


def levels_by_edges(
    layout: DatasetLayout,
    keys: pa.ChunkedArray,
    scores: NDArray[np.float32],
    sources: list[str],
) -> NDArray[np.int8]:
    """Returns the levels of scores by the edges that the dataset's levels were cut at, (n,)."""
    edges = read_edges(layout.edges)
    levels = np.zeros(len(scores), np.int8)
    hashes = key_hashes(keys.combine_chunks())
    groups = np.array([edges.group_of(source) for source in sources], np.object_)
    for group in sorted(set(groups.tolist())):
        rows = np.flatnonzero(groups == group)
        levels[rows] = levels_from_edges(scores[rows], hashes[rows], edges.groups[group])
    return levels
