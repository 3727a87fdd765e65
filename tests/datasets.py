"""A small dataset as the stages before pack leave it, written straight from the records."""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.config import CurationConfig, PackConfig
from pipeline.dataset.guard import record_config
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.dataset.tars import TarWriter
from pipeline.dataset.train_shards import write_index
from pipeline.pack.plan import TrainShardPlan, count_rows, plan_from_counts
from pipeline.pack.shard import pack_shard
from pipeline.report.write import write_report
from schemas.columns import signal_field, table_from_records, with_kept, write_table
from schemas.errors import RejectReason, SampleRejected
from schemas.manifest import Manifest
from schemas.records import (
    FETCHED_SCHEMA,
    LEVELLED_SCHEMA,
    PAIR_SCHEMA,
    SCORED_SCHEMA,
    UNIQUE_SCHEMA,
    CaptionedImage,
    FetchedSample,
    LevelledSample,
    Pair,
    ScoredSample,
    UniqueSample,
    pair_key,
)
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import LevelConfig

TURNS = '[{"from":"human","value":"Hello"},{"from":"gpt","value":"Hi."}]'

CAPTION = "picture number {number}"


def jpeg(seed: int, width: int = 24, height: int = 16) -> bytes:
    """Returns a picture of noise on a colour of its own."""
    random = np.random.default_rng(seed)
    pixels = np.clip(
        random.integers(0, 256, 3) + random.integers(-20, 20, (height, width, 3)), 0, 255
    )
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def fetched_sample(number: int, is_text: bool = False) -> FetchedSample:
    """Returns the row of a fetched sample; of text alone, if wanted."""
    url = None if is_text else f"https://images.example/{number}.jpg"
    caption = CAPTION.format(number=number)
    turns = TURNS.replace("Hi", f"Hi {number}") if is_text else None
    return FetchedSample(
        key=pair_key(url or "", turns or caption),
        url=url,
        caption=caption,
        conversations=turns,
        source="in.parquet",
        expected_hash=None,
        image_format=None if is_text else "jpg",
        width=None if is_text else 24,
        height=None if is_text else 16,
        original_width=None if is_text else 240,
        original_height=None if is_text else 160,
        sha256=None if is_text else f"{number:064x}",
        pixel_hash=None if is_text else f"{number:032x}",
    )


def pair_of(sample: FetchedSample) -> Pair:
    """Returns the pair that a sample was fetched for."""
    return Pair(**{field.name: getattr(sample, field.name) for field in fields(CaptionedImage)})


def write_fetched(layout: DatasetLayout, shard: int, samples: list[FetchedSample]) -> None:
    """Writes pairs and fetched shard; one more pair, not among the samples, got a 404."""
    gone = Pair(
        key=f"{shard:032x}",
        url="https://images.example/gone",
        caption="gone",
        conversations=None,
        source="in.parquet",
        expected_hash=None,
    )
    pairs = [
        gone,
        *(pair_of(row) for row in samples),
    ]
    for path in (layout.pairs(shard), layout.fetched(shard, "tar")):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_table(table_from_records(pairs, PAIR_SCHEMA), layout.pairs(shard), {"fingerprint": "p"})
    write_rejections(layout, Stage.READ, shard, [], "p")
    rejected = SampleRejected(RejectReason.HTTP_STATUS, "404 Not Found", 404)
    write_rejections(layout, Stage.FETCH, shard, [rejection(gone, rejected)], "f")
    with Path(layout.fetched(shard, "tar")).open("wb") as file, TarWriter(file) as tar:
        for row in samples:
            for number, name in enumerate(row.image_members):
                tar.add(name, jpeg(int(row.key[:8], 16) + number))
            tar.add(f"{row.key}.txt", row.caption.encode())
            tar.add(f"{row.key}.json", json.dumps(asdict(row)).encode())
    table = table_from_records(samples, FETCHED_SCHEMA)
    write_table(table, layout.fetched(shard, "parquet"), {"fingerprint": "f"})
    stats = {
        "fingerprint": "f" * 32,
        "count": len(pairs),
        "successes": len(samples),
        "duration": 2.0,
    }
    Path(layout.fetched(shard, "_stats.json")).write_text(json.dumps(stats))


def write_levelled(
    layout: DatasetLayout, shard: int, samples: list[FetchedSample], num_levels: int = 4
) -> None:
    """Writes scored, unique and levelled shards; the first sample is a near-duplicate."""
    for path in (layout.scored(shard), layout.unique(shard), layout.levelled(shard)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    scores = {row.key: int(row.key[:4], 16) / 65536 - 0.3 for row in samples}
    scored = [
        ScoredSample(
            key=row.key,
            clip_score=scores[row.key],
            is_caption_truncated=row.caption.endswith("7"),
            image_embedding=None,
            text_embedding=None,
        )
        for row in samples
    ]
    model = {"fingerprint": "s", "model": json.dumps({"model": "tiny", "precision": "fp32"})}
    write_table(table_from_records(scored, SCORED_SCHEMA), layout.scored(shard), model)
    write_rejections(layout, Stage.SCORE, shard, [], "s")
    first, *rest = samples
    pair = pair_of(first)
    rejected = SampleRejected(RejectReason.NEAR_DUPLICATE, "cosine 0.99")
    row = rejection(pair, rejected, kept_key=rest[0].key, clip_score=scores[first.key])
    write_rejections(layout, Stage.DEDUPLICATE, shard, [row], "u")
    unique = [
        UniqueSample(key=row.key, clip_score=scores[row.key], duplicate_count=0) for row in rest
    ]
    write_table(
        table_from_records(unique, UNIQUE_SCHEMA), layout.unique(shard), {"fingerprint": "u"}
    )
    levelled = [
        LevelledSample(
            key=row.key,
            clip_score=scores[row.key],
            alignment_level=1 + int(num_levels * int(row.key[:4], 16) / 65536),
        )
        for row in rest
    ]
    write_table(
        table_from_records(levelled, LEVELLED_SCHEMA), layout.levelled(shard), {"fingerprint": "l"}
    )
    write_rejections(layout, Stage.LEVEL, shard, [], "l")


def add_signal(root: Path, name: str, value_of: Callable[[float], float]) -> None:
    """Adds a signal to the scored shards of a dataset that is not packed yet.

    Args:
        value_of: gives it for a score.
    """
    for path in sorted((root / "scored").glob("*.parquet")):
        table = pq.read_table(path)
        values = [value_of(score) for score in table["clip_score"].to_pylist()]
        field = signal_field(name, "made up", json.dumps({"fingerprint": "made up"}))
        schema = with_kept(SCORED_SCHEMA, [field]).with_metadata(table.schema.metadata)
        added = pa.array(values, pa.float32())
        write_table(pa.Table.from_arrays([*table.columns, added], schema=schema), path)


def write_dataset(root: Path, shards: int = 2, samples: int = 20, is_scored: bool = True) -> int:
    """Writes a dataset that is ready to be packed; returns how many samples a pack will hold."""
    layout = DatasetLayout(str(root))
    numbers = range(shards * samples)
    made = [fetched_sample(number, is_text=not is_scored and number % 5 == 0) for number in numbers]
    rows = sorted(made, key=lambda row: row.key)
    for shard in range(shards):
        part = rows[shard * samples : (shard + 1) * samples]
        write_fetched(layout, shard, part)
        if is_scored:
            write_levelled(layout, shard, part)
    return shards * (samples - 1) if is_scored else shards * samples


def plan_train_shards(
    layout: DatasetLayout, shards: Iterable[int], config: PackConfig, has_levels: bool
) -> list[TrainShardPlan]:
    """Returns what each train shard is made of, as the pack stage counts and plans it."""
    counts = [count_rows(shard, layout, has_levels) for shard in shards]
    return plan_from_counts(layout, counts, config, has_levels)


def finish(
    root: Path, is_scored: bool = True, samples_per_shard: int = 15, by: str = "clip_score"
) -> Manifest:
    """Packs a dataset that is ready for it and writes its reports; returns the manifest.

    Args:
        by: what its levels are said to be cut by.
    """
    layout = DatasetLayout(str(root))
    config = CurationConfig(
        pack=PackConfig(samples_per_shard=samples_per_shard),
        levels=LevelConfig(num_levels=4, by=by),
        is_scored=is_scored,
    )
    shards = range(len(list((root / "fetched").glob("*.parquet"))))
    plans = plan_train_shards(layout, shards, config.pack, has_levels=is_scored)
    write_index(layout, [pack_shard(layout, plan, config.pack) for plan in plans])
    record_config(layout, config)
    return write_report(layout, config)
