"""Measures the search for near-duplicates beside exact brute force in the same run.

    python benchmarks/duplicates.py --save                              # one million
    python benchmarks/duplicates.py --sizes 1000000 2000000 4000000     # how cost grows
    python benchmarks/duplicates.py --out-of-memory                     # as the pipeline does it
    python benchmarks/duplicates.py --out-of-memory --thumbnails        # and with a second look
    python benchmarks/duplicates.py --quick                             # does it run at all?

The embeddings are a mixture fitted to real ones: those that the demonstration CLIP gives 5,766
pictures (openclipart, Noto emoji, words' pictures and Tux Paint stamps). Fitted are the length of
their mean, the share of the variance that lies within 250 k-means clusters, the sizes of the
clusters, and three spectra: between the clusters, within them, and of the differences of pictures
with a cosine above 0.93. One in fifty is a planted copy of another at a cosine drawn evenly from
the threshold to 1, moved in the directions in which real near-duplicates differ.

Recall is the share of planted copies, and of all pairs that brute force finds for 10,000 queries,
that are in one group. Precision is the share of joined embeddings whose group is connected by pairs
that reach the threshold in double precision. Brute force is timed on those queries against all
embeddings, and scaled to all against all. Making the embeddings, the search and the checks are
processes of their own, so that the peak memory is that of the search and what it is given.

With `--out-of-memory` the embeddings lie in Parquet files of 10,000 as the score stage leaves them,
in half precision, and the steps of the pipeline's search run one after another in one process.
Planted copies that the rounding moved below the threshold are then not counted. With `--thumbnails`
too, all is done once more where each picture also has a small copy, one of those of the bundled
stamps, by which pairs that are found get a second look; a planted copy has that of its original.
Pairs that are near by chance look different then, and are not to be joined.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from pipeline.dataset.worktimes import read_times
from pipeline.deduplicate.plan import plan_search, survey_shard
from pipeline.deduplicate.search import (
    join_groups,
    read_decisions,
    search_task,
    spill_shard,
    tasks_of,
    train_plan,
    unit_length,
)
from schemas.columns import write_table
from schemas.records import FETCHED_SCHEMA, SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file
from scoring.config import DeduplicateConfig
from scoring.duplicates.cells import PROBES
from scoring.duplicates.search import components, exact_cosines, near_duplicate_groups, pairs_above
from scoring.images.thumbnails import thumbnail

WIDTH = 512
THRESHOLD = 0.95
LOOK_DIFFERENCE = DeduplicateConfig().look_difference
CORPUS = Path(__file__).parent.parent / "examples" / "corpus"
TOPICS = 20_000
TOPIC_SIZE_DEVIATION = 0.6
"""Of the logarithm of a topic's size."""
COPY_RATIO = 0.02
QUERIES = 10_000
SHARD_ROWS = 10_000
BLOCK_NUMBERS = 1 << 23
"""Cosines that brute force computes at once, 32 megabytes."""
MEAN_SQUARED = 0.049
"""Squared length of the mean of all embeddings."""
WITHIN_RATIO = 0.61
"""Share of the variance within clusters, corrected for their number."""
RANKS = (1, 2, 3, 5, 10, 20, 40, 80, 160, 300, 384)
BETWEEN = (1.0, 0.75, 0.60, 0.476, 0.319, 0.182, 0.0835, 0.0224, 0.00283, 0.0003, 0.0001)
WITHIN = (1.0, 0.996, 0.954, 0.877, 0.788, 0.658, 0.474, 0.252, 0.0801, 0.0170, 0.00324)
DIFFERENCES = (1.0, 0.786, 0.656, 0.469, 0.258, 0.152, 0.0826, 0.0336, 0.00724, 0.0003, 0.0001)
"""Eigenvalues at these ranks, the first being 1; between them they fall evenly in logarithm."""


def deviations(eigenvalues: tuple[float, ...]) -> NDArray[np.float32]:
    """Returns standard deviations along the axes, (512,), of squares that add up to 1."""
    ranks = 1 + np.arange(WIDTH) * (RANKS[-1] - 1) / (WIDTH - 1)
    values = np.exp(np.interp(np.log(ranks), np.log(RANKS), np.log(eigenvalues)))
    shares: NDArray[np.float64] = values / values.sum()
    return np.sqrt(shares).astype(np.float32)


def mixture(count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns unit embeddings, (count, 512), and for each copy the row of its original.

    The copies are the last rows.
    """
    rng = np.random.default_rng(0)
    variance = 1 - MEAN_SQUARED
    rotations = [np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] for _ in range(2)]
    within = (deviations(WITHIN)[:, None] * rotations[0]).astype(np.float32)
    within *= np.float32((WITHIN_RATIO * variance) ** 0.5)
    between = (deviations(BETWEEN)[:, None] * rotations[1]).astype(np.float32)
    between *= np.float32(((1 - WITHIN_RATIO) * variance) ** 0.5)
    topics = rng.standard_normal((TOPICS, WIDTH), dtype=np.float32) @ between
    topics[:, 0] += np.float32(MEAN_SQUARED**0.5)
    shares = np.exp(TOPIC_SIZE_DEVIATION * rng.standard_normal(TOPICS))
    bounds = np.cumsum(shares / shares.sum())
    copies = int(COPY_RATIO * count)
    embeddings = np.empty((count, WIDTH), np.float32)
    for start in range(0, count - copies, 50_000):
        block = embeddings[start : min(start + 50_000, count - copies)]
        np.matmul(rng.standard_normal(block.shape, dtype=np.float32), within, out=block)
        chosen = np.searchsorted(bounds, rng.random(len(block)))
        block += topics[np.minimum(chosen, TOPICS - 1)]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    originals = rng.choice(count - copies, copies, replace=False)
    axes = (deviations(DIFFERENCES)[:, None] * rotations[0]).astype(np.float32)
    for start in range(0, copies, 50_000):
        base = embeddings[originals[start : start + 50_000]]
        cosine = rng.uniform(THRESHOLD, 1.0, (len(base), 1)).astype(np.float32)
        away = rng.standard_normal(base.shape, dtype=np.float32) @ axes
        away -= (away * base).sum(axis=1, keepdims=True) * base
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        first = count - copies + start
        embeddings[first : first + len(base)] = cosine * base + np.sqrt(1 - cosine**2) * away
    return embeddings, originals.astype(np.int64)


def precision(embeddings: NDArray[np.float32], groups: NDArray[np.int64]) -> float:
    """Returns the share of joined embeddings whose group is connected by exact pairs."""
    sizes = np.bincount(groups, minlength=len(groups))
    joined = np.flatnonzero(sizes[groups] > 1)
    order = joined[np.argsort(groups[joined], kind="stable")]
    right = 0
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        vectors = embeddings[rows].astype(np.float64)
        left, other = np.nonzero(vectors @ vectors.T >= THRESHOLD)
        right += len(rows) * int((components(len(rows), left, other) == 0).all())
    return right / max(len(joined), 1)


def brute_force(
    embeddings: NDArray[np.float32], queries: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], float, float]:
    """Returns all pairs of the queries with other rows, the seconds that it took, and of cores.

    In float32, by the same scan for what is above the threshold that the search uses. Reading the
    embeddings is not counted.
    """
    some = torch.from_numpy(embeddings[queries])
    step = max(1, BLOCK_NUMBERS // len(queries))
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    seconds = core_seconds = 0.0
    for start in range(0, len(embeddings), step):
        block = torch.from_numpy(np.array(embeddings[start : start + step]))
        started, started_cores = time.perf_counter(), time.process_time()
        left, right, _ = pairs_above(some @ block.T, THRESHOLD)
        seconds += time.perf_counter() - started
        core_seconds += time.process_time() - started_cores
        pairs.append((queries[left], right + start))
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return left[left != right], right[left != right], seconds, core_seconds


def make(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Saves the embeddings and which rows are the originals of the copies."""
    embeddings, originals = mixture(options.count)
    copies = np.arange(options.count - len(originals), options.count)
    if options.out_of_memory:
        looks = small_copies() if options.thumbnails else [None]
        look_of_row = np.arange(options.count) % len(looks)
        look_of_row[copies] = look_of_row[originals]
        for start in range(0, options.count, SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            stored = embeddings[rows].astype(np.float16)
            thumbnails = [looks[look] for look in look_of_row[rows].tolist()]
            write_shard(DatasetLayout(str(folder)), start // SHARD_ROWS, stored, thumbnails)
            embeddings[rows] = unit_length(stored)
        is_near = exact_cosines(embeddings, copies, originals) >= THRESHOLD
        copies, originals = copies[is_near], originals[is_near]
    np.save(folder / "embeddings.npy", embeddings)
    np.save(folder / "planted.npy", np.stack([copies, originals]))
    return {}


def small_copies() -> list[bytes | None]:
    """Returns the thumbnails of the bundled stamps."""
    copies: list[bytes | None] = []
    for path in sorted(CORPUS.rglob("*.png")):
        with Image.open(path) as image:
            stamp = image.convert("RGBA")
        ground = Image.new("RGBA", stamp.size, "white")
        ground.alpha_composite(stamp)
        copies.append(thumbnail(np.asarray(ground.convert("RGB"))))
    return copies


def write_shard(
    layout: DatasetLayout,
    shard: int,
    embeddings: NDArray[np.float16],
    thumbnails: list[bytes | None],
) -> None:
    """Writes the fetched and the scored table of a shard; a key is the number of its row."""
    count = len(embeddings)
    keys = [f"{shard * SHARD_ROWS + row:032x}" for row in range(count)]
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * WIDTH)
    columns = {
        "key": pa.array(keys),
        "caption": pa.repeat("a picture", count),
        "source": pa.repeat("benchmark", count),
        "pixel_hash": pa.array(keys),
        "clip_score": pa.repeat(pa.scalar(0.25, pa.float32()), count),
        "caption_index": pa.repeat(pa.scalar(0, pa.int32()), count),
        "is_caption_truncated": pa.repeat(False, count),
        "thumbnail": pa.array(thumbnails, pa.binary()),
        "image_embedding": pa.ListArray.from_arrays(offsets, pa.array(embeddings.ravel())),
    }
    for path, schema in (
        (layout.fetched(shard, "parquet"), FETCHED_SCHEMA),
        (layout.scored(shard), SCORED_SCHEMA),
    ):
        arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
        with commit_file(path) as file:
            table = pa.Table.from_arrays(arrays, schema=schema)
            write_table(table, file, {"fingerprint": "benchmark"})


def search(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Saves the groups; returns what the search took."""
    mode: Literal["r"] | None = "r" if options.out_of_memory else None
    embeddings = np.load(folder / "embeddings.npy", mmap_mode=mode)
    started, started_cores = time.perf_counter(), time.process_time()
    if options.out_of_memory:
        groups = search_shards(DatasetLayout(str(folder)), options)
    else:
        groups = near_duplicate_groups(
            embeddings, THRESHOLD, probes=options.probes, cells=options.cells, device=options.device
        )
    figures = {
        "seconds": time.perf_counter() - started,
        "core_seconds": time.process_time() - started_cores,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    steps = read_times(DatasetLayout(str(folder)), Stage.DEDUPLICATE)
    figures["temporary_gb"] = sum(step.bytes for step in steps) / 1e9
    np.save(folder / "groups.npy", groups)
    return figures


def search_shards(layout: DatasetLayout, options: argparse.Namespace) -> NDArray[np.int64]:
    """Returns the groups that the steps of the pipeline find, (n,), by the row that stays."""
    config = DeduplicateConfig(
        threshold=THRESHOLD,
        cells=options.cells,
        probes=options.probes,
        device=options.device,
        look_difference=LOOK_DIFFERENCE if options.thumbnails else 255.0,
    )
    shards = range(-(-options.count // SHARD_ROWS))
    surveys = [survey_shard(shard, layout) for shard in shards]
    plan = train_plan(plan_search(surveys, layout, config), layout, config)
    for shard in shards:
        spill_shard(shard, layout, config, plan)
    for task in tasks_of(plan):
        search_task(task, layout, config, plan)
    join_groups(plan, layout)
    groups = np.arange(options.count)
    for shard in shards:
        decisions = read_decisions(plan, shard)
        rows = plan.first_row(shard) + decisions["row"].to_numpy()
        groups[rows] = [int(key, 16) for key in decisions["kept_key"].to_pylist()]
    return groups


def check(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Returns recall and precision of the groups, and what brute force would take."""
    embeddings: NDArray[np.float32] = np.load(folder / "embeddings.npy", mmap_mode="r")
    copies, originals = np.load(folder / "planted.npy")
    groups = np.load(folder / "groups.npy")
    queries = np.random.default_rng(1).choice(options.count, options.queries, replace=False)
    left, right, seconds, core_seconds = brute_force(embeddings, np.sort(queries))
    scale = options.count / options.queries
    return {
        "copies": len(originals),
        "recall_planted": float((groups[copies] == groups[originals]).mean()),
        "precision": precision(embeddings, groups),
        "pairs_of_queries": len(left),
        "pairs_found": int((groups[left] == groups[right]).sum()),
        "brute_scaled_seconds": seconds * scale,
        "brute_scaled_core_seconds": core_seconds * scale,
    }


TASKS = {"make": make, "search": search, "check": check}


def measure(count: int, arguments: list[str]) -> dict[str, float]:
    """Returns the figures of one size; each task is a process of its own."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as folder:
        for task in TASKS:
            command = [sys.executable, __file__, *arguments, "--task", task, "--folder", folder]
            command += ["--count", str(count)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            figures.update(json.loads(output))
    return figures


COLUMNS = (
    *("embeddings", "search, s", "its core seconds", "brute force, scaled, s", "times as fast"),
    *("by core seconds", "recall of planted copies", "of all pairs of the queries", "precision"),
    *("peak memory, GB", "temporary files, GB"),
)


def cells_of(name: str, figures: dict[str, float]) -> list[str]:
    """Returns the row of the table of one search."""
    return [
        name,
        f"{figures['seconds']:,.1f}",
        f"{figures['core_seconds']:,.1f}",
        f"{figures['brute_scaled_seconds']:,.0f}",
        f"{figures['brute_scaled_seconds'] / figures['seconds']:,.0f}",
        f"{figures['brute_scaled_core_seconds'] / figures['core_seconds']:,.0f}",
        f"{figures['recall_planted']:.4f} of {figures['copies']:,}",
        f"{figures['pairs_found'] / max(1, figures['pairs_of_queries']):.4f} of "
        f"{figures['pairs_of_queries']:,}",
        f"{figures['precision']:.4f}",
        f"{figures['peak_gb']:.2f}",
        f"{figures['temporary_gb']:.2f}",
    ]


def main() -> None:
    """Runs the search at each size and prints what it found and took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--cells", type=int, default=0, help="0 chooses them from the count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out-of-memory", action="store_true", help="from Parquet, as in a job")
    parser.add_argument("--thumbnails", action="store_true", help="a second look, out of memory")
    parser.add_argument("--quick", action="store_true", help="50,000 embeddings, 1,000 queries")
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    add_save_option(parser, "duplicates")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.queries = [50_000], 1_000
    if options.task:
        print(json.dumps(TASKS[options.task](options.folder, options)))
        return
    words = sys.argv[1:]
    ways = {"": [word for word in words if word != "--thumbnails"]}
    if options.thumbnails:
        ways[", second look"] = words
    rows = []
    for count in options.sizes:
        for name, arguments in ways.items():
            figures = measure(count, arguments)
            rows.append(cells_of(f"{count:,}{name}", figures))
            print(", ".join(rows[-1]), flush=True)
    show_table(
        Table(COLUMNS, rows),
        options.save,
        held="out of memory" if options.out_of_memory else "in memory",
        queries=options.queries,
    )


if __name__ == "__main__":
    main()
