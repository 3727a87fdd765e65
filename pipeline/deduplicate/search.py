"""The steps of the search for duplicates: each holds little in memory and leaves files behind.

    train_plan    cells, from a uniform sample of all embeddings         cells.npz
    spill_shard   a shard's rows, sorted by what they are searched in     near/ and exact/
    search_task   the pairs within some cells or some hashes              edges/
    join_groups   the groups of all pairs, and the best of each           decisions/ and kept/

All lies below `_run/deduplicate/` in a folder named by the fingerprint of the search: a file that
stands there is of this search, and a run that was stopped goes on behind it. Rows are numbered
through all shards; a task holds no more embeddings than `memory_bytes`, or one cell if it is
larger.
"""

import functools
import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.arrow_files import read_batches, write_batches
from pipeline.dataset.captions import caption_hashes, chosen_captions
from pipeline.dataset.fetched_rows import fetched_rows
from pipeline.dataset.progress import end_piece
from pipeline.dataset.worktimes import timed
from pipeline.deduplicate.plan import SearchPlan, SearchTask
from schemas.columns import read_table
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, exists, list_files, open_read
from scoring.config import DeduplicateConfig
from scoring.devices import claim_device
from scoring.duplicates.cells import (
    assign_cells,
    canonical_sample,
    cell_count,
    content_hashes,
    sample_size,
    train_cells,
)
from scoring.duplicates.looks import Looks
from scoring.duplicates.search import components, search_all, search_cell
from scoring.images.thumbnails import THUMBNAIL_BYTES


def train_plan(plan: SearchPlan, layout: DatasetLayout, config: DeduplicateConfig) -> SearchPlan:
    """Returns the plan once the cells are saved, with the number of groups of cells."""
    if plan.is_done or plan.width == 0 or plan.count == 0:
        return plan
    path = f"{plan.folder}/cells.npz"
    if not exists(path):
        with timed(layout, Stage.DEDUPLICATE, "train") as work:
            work.rows, work.device = plan.count, search_device(config).partition(":")[0]
            _train(path, plan, layout, config)
    _, groups = load_cells(plan)
    return replace(plan, cell_groups=int(groups.max()) + 1)


def _train(path: str, plan: SearchPlan, layout: DatasetLayout, config: DeduplicateConfig) -> None:
    """Commits the centres of the cells, and the groups that their search is divided into."""
    cells = config.cells or cell_count(plan.count)
    share = min(1.0, sample_size(cells) / plan.count)
    parts = []
    for place, shard in enumerate(plan.shards):
        rows = plan.offsets[place + 1] - plan.offsets[place]
        # Rows stand in the order of a hash: the first ones are a uniform sample.
        parts.append(read_embeddings(layout, shard, math.ceil(share * rows), plan.width))
    sample = np.concatenate(parts)
    sample = canonical_sample(sample, content_hashes(sample), len(sample))
    device = search_device(config)
    centroids = train_cells(sample, cells, seed=config.seed, device=device)
    homes = assign_cells(sample, centroids, config.threshold, config.probes, device)
    expected = np.bincount(homes[homes >= 0], minlength=len(centroids)) / len(sample)
    row_bytes = plan.width * 4 + (THUMBNAIL_BYTES if plan.must_look_alike else 0)
    group_bytes = np.cumsum(expected) * plan.count * row_bytes
    groups = np.minimum(group_bytes // config.memory_bytes, len(centroids) - 1)
    _, groups = np.unique(groups, return_inverse=True)
    with commit_file(path) as file:
        np.savez(file, centroids=centroids, groups=groups)


def tasks_of(plan: SearchPlan) -> Iterator[SearchTask]:
    """Yields the tasks that together are the search."""
    if plan.is_done:
        return
    for group in range(plan.hash_groups):
        yield SearchTask("exact", group)
    for group in range(plan.cell_groups):
        yield SearchTask("near", group)


def spill_shard(
    shard: int, layout: DatasetLayout, config: DeduplicateConfig, plan: SearchPlan
) -> int:
    """Returns the shard once its rows lie sorted by the tasks that search them."""
    if plan.is_done:
        return shard
    near, exact = spill_path(plan, "near", shard), spill_path(plan, "exact", shard)
    if not (exists(exact) and (exists(near) or not plan.cell_groups)):
        with timed(layout, Stage.DEDUPLICATE, "spill") as work:
            work.rows = plan.offsets[plan.shards.index(shard) + 1] - plan.first_row(shard)
            work.bytes = write_batches(exact, _hash_batches(shard, layout, plan))
            if plan.cell_groups:
                work.device = search_device(config).partition(":")[0]
                work.bytes += write_batches(near, _cell_batches(shard, layout, config, plan))
    end_piece(layout, Stage.DEDUPLICATE, "spill", shard)
    return shard


def search_task(
    task: SearchTask, layout: DatasetLayout, config: DeduplicateConfig, plan: SearchPlan
) -> SearchTask:
    """Returns the task once the pairs that it found are saved."""
    path = f"{plan.folder}/edges/{task.kind}-{task.group:05d}.npy"
    if not exists(path):
        with timed(layout, Stage.DEDUPLICATE, task.kind) as work:
            if task.kind == "near":
                work.device = search_device(config).partition(":")[0]
            groups = plan.cell_groups if task.kind == "near" else plan.hash_groups
            work.rows = round(plan.count / groups)
            edges = _search(task, config, plan)
            with commit_file(path) as file:
                np.save(file, edges)
    end_piece(layout, Stage.DEDUPLICATE, "search", f"{task.kind}-{task.group}")
    return task


def _search(task: SearchTask, config: DeduplicateConfig, plan: SearchPlan) -> NDArray[np.int64]:
    rows = pa.concat_tables(
        [read_batches(spill_path(plan, task.kind, shard), [task.group]) for shard in plan.shards]
    ).combine_chunks()
    if task.kind == "exact":
        return _equal_rows(rows, config.must_captions_agree)
    return _near_rows(rows, plan.width, config)


def join_groups(plan: SearchPlan, layout: DatasetLayout) -> SearchPlan:
    """Returns the plan once it is saved, for each shard, which of its rows give way to which."""
    done = f"{plan.folder}/joined"
    if not (plan.is_done or exists(done)):
        with timed(layout, Stage.DEDUPLICATE, "join") as work:
            work.rows = plan.count
            _join(plan, layout)
            with commit_file(done):
                pass
    return plan


def _join(plan: SearchPlan, layout: DatasetLayout) -> None:
    """Saves what becomes of the rows of each shard that have duplicates."""
    edges = [np.empty((2, 0), np.int64)]
    for path in list_files(f"{plan.folder}/edges", ".npy"):
        with open_read(path) as file:
            edges.append(np.load(io.BytesIO(file.read())))
    rows, ends = np.unique(np.concatenate(edges, axis=1), return_inverse=True)
    ends = ends.reshape(2, -1)
    group = components(len(rows), ends[0], ends[1])
    members = _describe(rows, layout, plan)
    keys = np.array(members["key"].to_pylist(), "S32")
    order = np.lexsort((keys, -members["clip_score"].to_numpy(), group))
    is_first = np.append(True, np.diff(group[order]) > 0)[: len(order)]
    best = np.empty(len(rows), np.int64)
    best[order] = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    counts = np.bincount(best, minlength=len(rows)) - 1
    table = pa.table(
        {
            "row": rows,
            "kept_row": rows[best],
            "kept_key": members["key"].take(pa.array(best)),
            "is_kept": best == np.arange(len(rows)),
            "is_exact": pc.equal(members["pixel_hash"], members["pixel_hash"].take(pa.array(best))),
            "duplicate_count": np.maximum(counts, 0).astype(np.int32),
        }
    )
    bounds = np.searchsorted(rows, plan.offsets)
    for place, shard in enumerate(plan.shards):
        part = table.slice(bounds[place], bounds[place + 1] - bounds[place])
        write_batches(spill_path(plan, "decisions", shard), part.to_batches(), part.schema)
    _write_loans(plan, table.filter(pc.invert(table["is_kept"])))


def _write_loans(plan: SearchPlan, losers: pa.Table) -> None:
    """Writes for each shard which of its rows stay in the place of rows of which other shards."""
    losers = losers.select(["row", "kept_row"]).sort_by([("kept_row", "ascending")])
    bounds = np.searchsorted(losers["kept_row"].to_numpy(), plan.offsets)
    for place, shard in enumerate(plan.shards):
        part = losers.slice(bounds[place], bounds[place + 1] - bounds[place])
        write_batches(spill_path(plan, "loans", shard), part.to_batches(), part.schema)


def read_decisions(plan: SearchPlan, shard: int) -> pa.Table:
    """Returns the shard's rows that have duplicates: row in the shard, kept_key, is_kept, ..."""
    table = read_batches(spill_path(plan, "decisions", shard))
    rows = pc.subtract(table["row"], plan.first_row(shard))
    return table.set_column(0, "row", rows)


def search_device(config: DeduplicateConfig) -> str:
    """Returns where this process searches: cpu, or the GPU that it has taken, cuda:N.

    Raises:
        ConfigError: if a GPU is wanted and there is none.
    """
    return str(claim_device(config.device, "deduplicate.device"))


def read_embeddings(
    layout: DatasetLayout, shard: int, count: int, width: int
) -> NDArray[np.float32]:
    """Returns the image embeddings of a shard's first rows, of unit length, (count, width)."""
    return unit_length(_stored_embeddings(layout, shard, count, width))


def unit_length(stored: NDArray[np.float16]) -> NDArray[np.float32]:
    """Returns the embeddings as float32 of unit length: half precision moved them a little."""
    vectors = stored.astype(np.float32)
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    unit: NDArray[np.float32] = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def load_cells(plan: SearchPlan) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the centres of the cells, and of each the number of its group."""
    with open_read(f"{plan.folder}/cells.npz") as file:
        arrays = np.load(io.BytesIO(file.read()))
        return arrays["centroids"], arrays["groups"]


def _cell_batches(
    shard: int, layout: DatasetLayout, config: DeduplicateConfig, plan: SearchPlan
) -> Iterator[pa.RecordBatch]:
    centroids, group_of_cell = load_cells(plan)
    place = plan.shards.index(shard)
    count = plan.offsets[place + 1] - plan.offsets[place]
    stored = _stored_embeddings(layout, shard, count, plan.width)
    homes = assign_cells(
        unit_length(stored), centroids, config.threshold, config.probes, search_device(config)
    )
    rows, ranks = np.nonzero(homes >= 0)
    cells = homes[rows, ranks]
    order = np.argsort(cells, kind="stable")
    groups = group_of_cell[cells[order]]
    captions = caption_hashes(_fetched_rows(layout, shard)["caption"].to_pylist())
    thumbnails = scored_thumbnails(layout, shard) if plan.must_look_alike else None
    bounds = np.searchsorted(groups, np.arange(plan.cell_groups + 1))
    for first, last in itertools.pairwise(bounds.tolist()):
        taken = rows[order[first:last]]
        columns = {
            "cell": cells[order[first:last]],
            "is_visitor": ranks[order[first:last]] > 0,
            "row": taken + plan.offsets[place],
            "caption": captions[taken],
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(stored[taken].ravel()), plan.width
            ),
        }
        if thumbnails is not None:
            columns["thumbnail"] = thumbnails.take(pa.array(taken))
        yield pa.record_batch(columns)


def _hash_batches(shard: int, layout: DatasetLayout, plan: SearchPlan) -> Iterator[pa.RecordBatch]:
    fetched = _fetched_rows(layout, shard)
    rows = np.flatnonzero(fetched["pixel_hash"].is_valid().to_numpy(zero_copy_only=False))
    hexes = fetched["pixel_hash"].take(pa.array(rows)).to_pylist()
    halves = np.frombuffer(bytes.fromhex("".join(hexes)), ">u8").reshape(-1, 2).astype(np.uint64)
    captions = caption_hashes(fetched["caption"].to_pylist())
    groups = (halves[:, 0] >> np.uint64(48)).astype(np.int64) * plan.hash_groups >> 16
    order = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[order], np.arange(plan.hash_groups + 1))
    first_row = plan.first_row(shard)
    for first, last in itertools.pairwise(bounds.tolist()):
        taken = order[first:last]
        yield pa.record_batch(
            {
                "row": rows[taken] + first_row,
                "caption": captions[rows[taken]],
                "upper": halves[taken, 0],
                "lower": halves[taken, 1],
            }
        )


def _equal_rows(rows: pa.Table, must_captions_agree: bool) -> NDArray[np.int64]:
    """Returns pairs of rows that join those of equal pixels, (2, m)."""
    numbers = rows["row"].to_numpy()
    columns = [rows["upper"].to_numpy(), rows["lower"].to_numpy()]
    if must_captions_agree:
        columns.append(rows["caption"].to_numpy())
    order = np.lexsort([numbers, *columns])
    is_equal = np.ones(max(len(order) - 1, 0), np.bool_)
    for column in columns:
        is_equal &= column[order[1:]] == column[order[:-1]]
    places = np.flatnonzero(is_equal)
    return np.stack([numbers[order[places]], numbers[order[places + 1]]]).astype(np.int64)


def _near_rows(rows: pa.Table, width: int, config: DeduplicateConfig) -> NDArray[np.int64]:
    """Returns pairs of rows that join the near-duplicates within each cell, (2, m)."""
    numbers = rows["row"].to_numpy()
    visitors = rows["is_visitor"].to_numpy()
    order = np.lexsort((numbers, visitors, rows["cell"].to_numpy()))
    cells = rows["cell"].to_numpy()[order]
    captions = rows["caption"].to_numpy()
    stored = flat(rows["embedding"]).reshape(-1, width)
    thumbnails = rows["thumbnail"].chunk(0) if "thumbnail" in rows.column_names else None
    device = search_device(config)

    def search(places: NDArray[np.intp]) -> NDArray[np.int64]:
        pairs = search_cell(
            unit_length(stored[places]),
            len(places) - int(visitors[places].sum()),
            config.threshold,
            must_agree=captions[places] if config.must_captions_agree else None,
            are_alike=_second_look(thumbnails, places, config.look_difference),
            device=device,
        )
        found: NDArray[np.int64] = numbers[places[pairs]]
        return found

    return search_all(search, np.split(order, np.flatnonzero(np.diff(cells)) + 1), config.threads)


def _second_look(
    thumbnails: pa.Array | None, places: NDArray[np.intp], limit: float
) -> Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]] | None:
    """Returns what tells of which pairs of a cell's rows the pictures look alike."""
    if thumbnails is None:
        return None
    return functools.partial(Looks(thumbnails.take(pa.array(places))).are_alike, limit=limit)


def _describe(rows: NDArray[np.int64], layout: DatasetLayout, plan: SearchPlan) -> pa.Table:
    """Returns key, clip_score and pixel_hash of ascending rows of all shards."""
    bounds = np.searchsorted(rows, plan.offsets)
    schema = pa.schema({"key": pa.string(), "clip_score": pa.float32(), "pixel_hash": pa.string()})
    parts = [schema.empty_table()]
    for place, shard in enumerate(plan.shards):
        if bounds[place] < bounds[place + 1]:
            taken = rows[bounds[place] : bounds[place + 1]] - plan.offsets[place]
            with open_read(layout.scored(shard)) as file:
                scored = read_table(file, SCORED_SCHEMA, ["key", "clip_score"])
            pixels = _fetched_rows(layout, shard)["pixel_hash"]
            table = scored.append_column("pixel_hash", pixels).take(pa.array(taken))
            parts.append(table.cast(schema))
    return pa.concat_tables(parts).combine_chunks()


def _fetched_rows(layout: DatasetLayout, shard: int) -> dict[str, pa.Array]:
    """Returns caption and pixel_hash of a shard's scored rows."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key", "caption_index"])
    rows = fetched_rows(layout, shard, scored["key"], ["caption", "captions", "pixel_hash"])
    captions = chosen_captions(rows, scored["caption_index"].to_pylist())
    return {
        "caption": pa.array(captions, pa.string()),
        "pixel_hash": rows["pixel_hash"].combine_chunks(),
    }


def scored_thumbnails(layout: DatasetLayout, shard: int) -> pa.Array:
    """Returns the thumbnails of a shard's scored rows; null where there are none."""
    with open_read(layout.scored(shard)) as file:
        scored = read_table(file, SCORED_SCHEMA, ["key"])
    return fetched_rows(layout, shard, scored["key"], ["thumbnail"])["thumbnail"].combine_chunks()


def _stored_embeddings(
    layout: DatasetLayout, shard: int, count: int, width: int
) -> NDArray[np.float16]:
    with open_read(layout.scored(shard)) as file:
        table = read_table(file, SCORED_SCHEMA, ["image_embedding"]).slice(0, count)
    return flat(table["image_embedding"]).reshape(-1, width)


def flat(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """Returns the numbers of all lists of a column, one after another."""
    values: NDArray[np.float16] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values


def spill_path(plan: SearchPlan, kind: str, shard: int) -> str:
    """Returns the path of what a step leaves of a shard."""
    return f"{plan.folder}/{kind}/{shard:05d}.arrow"
