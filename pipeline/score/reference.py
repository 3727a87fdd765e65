"""What signals from stored embeddings are computed from: pairs, and what these are held against.

That reference is a fixed sample of the dataset, the same for every shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.captions import chosen_captions
from pipeline.dataset.embeddings import embedding_array
from pipeline.dataset.fetched_rows import fetched_rows
from schemas.columns import check_schema
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.storage import committed_fingerprint, open_read
from scoring.control import Exchange
from scoring.signals import negclip, neighbours
from scoring.signals.pairs import REFERENCE_PAIRS, Reference, ScoredPairs

MOST_REFERENCE_SHARDS = 64


@dataclass(frozen=True, slots=True)
class HeldAgainstReference:
    """A signal of pairs that are held against others."""

    temperature: float
    description: str
    of_pairs: Callable[[ScoredPairs, Reference], NDArray[np.float32]]
    of_exchanged: Callable[[ScoredPairs, Reference, Exchange], NDArray[np.float32]]


HELD_AGAINST_REFERENCE = {
    "negclip": HeldAgainstReference(
        negclip.TEMPERATURE,
        "cosine less how well each half fits other pairs (negCLIPLoss, arXiv:2405.19547)",
        negclip.negclip,
        negclip.exchanged_negclip,
    ),
    "neighbours": HeldAgainstReference(
        neighbours.TEMPERATURE,
        "agreement with what is said of like pictures and shown by like captions (as LEMoN, "
        "arXiv:2407.18941)",
        neighbours.neighbours,
        neighbours.exchanged_neighbours,
    ),
}
"""By kind."""


def reference_rows(shards: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns from which shards the reference is taken, and how many rows of each, the first.

    Rows stand in the order of a hash: the first of them are a fair sample.
    """
    ordered = sorted(shards)
    count = min(len(ordered), MOST_REFERENCE_SHARDS)
    rows = -(-REFERENCE_PAIRS // count)
    return [(ordered[index * len(ordered) // count], rows) for index in range(count)]


def reference_identity(layout: DatasetLayout, shards: tuple[int, ...]) -> str:
    """Returns what tells a reference from another: `purge` takes rows out of a scored shard."""
    parts = []
    for shard, rows in reference_rows(shards):
        with open_read(layout.scored(shard)) as file:
            found = pq.read_metadata(file).num_rows
        parts.append(f"{shard}:{committed_fingerprint(layout.scored(shard))}:{rows} of {found}")
    return ", ".join(parts)


@lru_cache(maxsize=1)
def reference_of(layout: DatasetLayout, shards: tuple[int, ...], identity: str) -> Reference:
    """Returns the pairs that all pairs are held against.

    Args:
        identity: of the reference, for the cache.
    """
    keys: list[str] = []
    image, text = [], []
    for shard, rows in reference_rows(shards):
        names = ["key", "image_embedding", "text_embedding"]
        with open_read(layout.scored(shard)) as file:
            parquet = pq.ParquetFile(file)
            check_schema(parquet.schema_arrow, SCORED_SCHEMA, layout.scored(shard))
            for batch in parquet.iter_batches(rows, columns=names, use_threads=False):
                table = pa.Table.from_batches([batch])
                keys += table["key"].to_pylist()
                image.append(embedding_array(table, "image_embedding", layout.scored(shard)))
                text.append(embedding_array(table, "text_embedding", layout.scored(shard)))
                break
    places = {key: row for row, key in enumerate(keys)}
    return Reference(np.concatenate(image), np.concatenate(text), places)


def scored_pairs(layout: DatasetLayout, shard: int, scored: pa.Table) -> ScoredPairs:
    """Returns rows of a scored shard as signals take them."""
    path = layout.scored(shard)
    return ScoredPairs(
        keys=scored["key"].to_pylist(),
        captions=captions_of(layout, shard, scored),
        clip_score=np.asarray(scored["clip_score"].to_numpy(), np.float32),
        image_embedding=embedding_array(scored, "image_embedding", path),
        text_embedding=embedding_array(scored, "text_embedding", path),
    )


def captions_of(layout: DatasetLayout, shard: int, scored: pa.Table) -> list[str]:
    """Returns the caption of each row, of several the one that scored best."""
    rows = fetched_rows(layout, shard, scored["key"], ["caption", "captions"])
    return chosen_captions(rows, scored["caption_index"].to_pylist())
