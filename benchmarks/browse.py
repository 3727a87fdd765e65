"""Measures how long `aligngpt-curate browse` takes to answer over many rows.

    python benchmarks/browse.py             # one million rows
    python benchmarks/browse.py --save      # and writes benchmarks/results/browse.json
    python benchmarks/browse.py --quick     # does it run at all?

The rows are made: nine in ten kept, in train shards of 10,000, the others left out by the stages.
Each request goes through the whole page, from the address to its HTML, without the network. A
request is timed three times and the middle is printed, by the clock and by processor time: on a
busy machine the clock says little.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from pipeline.browse.page import Page
from pipeline.browse.rows import DatasetRows
from schemas.columns import write_table
from schemas.records import REJECTION_SCHEMA, TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file

SHARD_ROWS = 10_000
ROUNDS = 3
WORDS = ("red", "green", "old", "small", "house", "cat", "dog", "street", "tree", "photo", "sign")
REQUESTS = {
    "first page": "/",
    "levels 6 and up, 256 px": "/?level_from=6&min_side=256",
    "best scores first": "/?order=score%2C+best+first",
    "the last page by score": "/?order=score%2C+best+first&page=14999",
    "a word in the caption": "/?text=red+house",
    "a host": "/?host=site7.example",
    "rejected, by reason": "/?state=rejected&reason=timed_out",
    "duplicates": "/duplicates",
    "a level's edge": "/edges",
}


def make_rows(count: int, shard: int, rejected: bool) -> dict[str, pa.Array]:
    """Returns columns of made rows."""
    rng = np.random.default_rng(2 * shard + rejected)
    words = rng.choice(WORDS, (count, 8))
    keys = [f"{value:032x}" for value in rng.integers(0, 1 << 62, count)]
    hosts = rng.integers(0, 1000, count)
    return {
        "key": pa.array(keys),
        "url": pa.array(
            [f"https://site{h}.example/{k}.jpg" for h, k in zip(hosts, keys, strict=True)]
        ),
        "caption": pa.array([" ".join(row) for row in words]),
        "source": pa.repeat("pairs.parquet", count),
        "clip_score": pa.array(rng.normal(0.25, 0.05, count).astype(np.float32)),
        "alignment_level": pa.array(rng.integers(1, 9, count).astype(np.int8)),
        "width": pa.array(rng.integers(64, 600, count).astype(np.int32)),
        "height": pa.array(rng.integers(64, 600, count).astype(np.int32)),
        "stage": pa.repeat("deduplicate" if shard % 2 else "fetch", count),
        "reason": pa.repeat("near_duplicate" if shard % 2 else "timed_out", count),
        "is_retryable": pa.repeat(shard % 2 == 0, count),
        "detail": pa.repeat("made", count),
        "kept_key": pa.array(keys).take(pa.array(np.arange(count) // 4)),
    }


def make_dataset(root: str, rows: int) -> None:
    """Writes the tables of a dataset; there are no pictures."""
    layout = DatasetLayout(root)
    for shard in range(max(1, rows // SHARD_ROWS)):
        stage = Stage.DEDUPLICATE if shard % 2 else Stage.FETCH
        for path, schema, count, rejected in (
            (layout.train(shard, "parquet"), TRAIN_SCHEMA, SHARD_ROWS * 9 // 10, False),
            (layout.rejected(stage, shard), REJECTION_SCHEMA, SHARD_ROWS // 10, True),
        ):
            columns = make_rows(count, shard, rejected)
            arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
            with commit_file(path) as file:
                write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def main() -> None:
    """Prints how long each kind of request takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    add_save_option(parser, "browse")
    options = parser.parse_args()
    count = 20_000 if options.quick else options.rows
    rows = []
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as root:
        make_dataset(root, count)
        started, cores = time.perf_counter(), time.process_time()
        client = TestClient(Page(DatasetRows(root)).app(), base_url="http://127.0.0.1")
        took = time.perf_counter() - started, time.process_time() - cores
        rows.append(["opening the dataset, once", *(f"{side:.2f}" for side in took)])
        for name, address in REQUESTS.items():
            times = []
            for _ in range(ROUNDS):
                started, cores = time.perf_counter(), time.process_time()
                assert client.get(address).status_code == 200
                times.append((time.perf_counter() - started, time.process_time() - cores))
            sides = (statistics.median(side) for side in zip(*times, strict=True))
            rows.append([name, *(f"{side:.2f}" for side in sides)])
            print(", ".join(rows[-1]), flush=True)
    table = Table(("", "seconds", "seconds of a core"), rows)
    show_table(table, options.save, rows=count, rounds=ROUNDS)


if __name__ == "__main__":
    main()
