"""What a run does with a hundred million rows before its first batch: seconds and memory.

    python benchmarks/rows.py --folder /tmp/rows --rows 1e7 --save   # benchmarks/results/rows.json
    python benchmarks/rows.py --folder /tmp/rows --rows 1e8 --parts make
    python benchmarks/rows.py --folder /tmp/rows --rows 1e8 --parts copy plan again several
    python benchmarks/rows.py --folder /tmp/rows --rows 1e6 --parts make copy plan lists

Rows are made up: a dataset of pairs as `aligngpt-curate` leaves it, but for its pictures, and the
lengths of all samples beside it. They say less than real ones, so that their copy is smaller. Each
part runs in processes of its own:

- copy: the rows are copied, once for a dataset; while they are tokenised, which takes longer;
- plan: from there to the rows of the first step, with nothing else there;
- again: the same with the plan there, as of a run that goes on;
- several: the same by several processes at once, of which one plans;
- lists: the same plan in lists, as it was made before rows were mapped, to compare both.

Printed are seconds by the clock, of cores, what a random row takes, and the most memory that a
process held for itself (RssAnon; what is mapped from files the system may take back), of which its
libraries hold some: `start` is what was held before.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table
from schemas.columns import write_table
from schemas.manifest import Manifest, ShardEntry
from schemas.records import TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from training.config import DataConfig
from training.data.dataset import TrainDataset
from training.data.lengths import COLUMNS, measure_lengths
from training.data.loader import TrainingPlan
from training.data.mapped import MappedFolders, digest_of
from training.data.packing import pack
from training.data.plan import spread

PARTS = ("make", "copy", "plan", "again", "several", "lists")
SHARD = 100_000
SHORTEST, LONGEST = 600, 760
"""Tokens of a caption behind 576 vectors of a picture."""
FIGURES = {
    "seconds": "seconds",
    "cores": "of cores",
    "row": "a random row, us",
    "held": "MB held",
    "start": "of it at the start",
}
"""What a process of a part found, and its column."""
NAMES = {
    "copy": "copying the rows, once for a dataset",
    "plan": "from there to the rows of the first step",
    "again": "the same with the plan there",
    "several": "one of several processes at once",
    "lists": "the same plan in lists",
}
READ = 20_000
"""Rows that are read at random."""
WORDS = np.array(["a", "photo", "of", "the", "red", "blue", "old", "cat", "dog", "house", "lake"])
DATA = DataConfig(tokens_per_sequence=2048, sequences_per_step=64, packing_window=64)


class Encoder:
    """Knows what lengths were made by: they stand beside the shards."""

    tokens_per_sequence = DATA.tokens_per_sequence

    def identity(self) -> str:
        """Returns a name for it."""
        return "made up"


def main() -> None:
    """Runs the parts, and removes all if they began with making the rows and ended without."""
    options = parse_options()
    if options.work:
        print(json.dumps(watched(options)))
        return
    if "make" in options.parts:
        make_dataset(options.folder / "data", int(options.rows))
    found = {part: run(part, options) for part in options.parts if part != "make"}
    plans = {one["plan"] for part, ones in found.items() if part != "copy" for one in ones}
    assert len(plans) <= 1, "the plans differ"
    size = sum(path.stat().st_size for path in (options.folder / "rows").glob("*/*"))
    cells = [
        [NAMES[part], *(f"{one[name]:,.1f}" for name in FIGURES)]
        for part, ones in found.items()
        for one in ones
    ]
    table = Table(("", *FIGURES.values()), cells)
    show_table(table, options.save, rows=int(options.rows), gigabytes_of_rows=round(size / 1e9, 2))
    if not options.keep:
        shutil.rmtree(options.folder)


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="is made, and removed")
    parser.add_argument("--rows", type=float, default=1e7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:-1])
    parser.add_argument("--processes", type=int, default=2, help="of several")
    parser.add_argument("--keep", action="store_true", help="leave the folder for further parts")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    add_save_option(parser, "rows")
    return parser.parse_args()


def run(part: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns what the processes of a part found, and prints it."""
    if part == "several":
        for folder in (options.folder / "rows").glob("epoch-*"):
            shutil.rmtree(folder)
    count = options.processes if part == "several" else 1
    words = [sys.executable, __file__, "--folder", str(options.folder), "--work", part]
    call = partial(subprocess.run, words, check=True, stdout=subprocess.PIPE)
    with ThreadPoolExecutor(count) as pool:
        found = [json.loads(one.stdout) for one in pool.map(lambda _: call(), range(count))]
    for one in found:
        print(part, ", ".join(f"{name} {one[name]:,.1f}" for name in FIGURES), flush=True)
    return found


def watched(options: argparse.Namespace) -> dict[str, Any]:
    """Returns what a part found, with what it took."""
    ended = threading.Event()
    start = held()
    most = [start]

    def watch() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], held())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, cores = time.monotonic(), time.process_time()
    try:
        found = plan_in_lists(options) if options.work == "lists" else planned(options)
    finally:
        took, cores = time.monotonic() - began, time.process_time() - cores
        ended.set()
        watcher.join()
    took, cores = found.pop("took", took), found.pop("cores", cores)
    return {"seconds": took, "cores": cores, "held": most[0], "start": start, "row": 0.0, **found}


def held() -> float:
    """Returns what this process holds for itself, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = (line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kilobytes) / 1000


def planned(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the plan's hash and what it took to the first step's rows, and then a row."""
    began, cores = time.monotonic(), time.process_time()
    kept = MappedFolders(options.folder / "rows")
    dataset = TrainDataset([str(options.folder / "data")], kept)
    if options.work == "copy":
        return {}
    encoder: Any = Encoder()
    lengths = measure_lengths(dataset, encoder, lambda numbers, _: numbers)
    copies = np.broadcast_to(1.0, len(dataset))
    plan = TrainingPlan(dataset.by_key, lengths, copies, DATA, seed=0, epochs=1, kept=kept)
    first = next(plan.steps_from(0))
    for sample in (sample for packed in first.sequences for sample in packed):
        dataset[sample]
    took, cores = time.monotonic() - began, time.process_time() - cores
    read_from = time.process_time()
    for sample in np.random.default_rng(0).integers(0, len(dataset), READ).tolist():
        dataset[sample]
    row = (time.process_time() - read_from) / READ * 1e6
    some = (next(plan.steps_from(number)).sequences for number in checked(plan.num_steps))
    return {"took": took, "cores": cores, "row": row, "plan": digest_of(plan.num_steps, *some)}


def checked(steps: int) -> range:
    """Returns the numbers of the steps by which plans are compared."""
    return range(0, steps, max(1, steps // 1000))


def plan_in_lists(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the same of a plan in lists, over the keys themselves."""
    folder = options.folder / "data"
    keys = pq.read_table(folder / "train", columns=["key"]).column("key").to_pylist()
    table = pq.read_table(next((folder / "_lengths").iterdir()), columns=["tokens"])
    tokens = table.column("tokens").to_numpy()
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    order = sorted(range(len(keys)), key=lambda sample: (keys[sample], sample))
    rng.random(len(keys))
    order = [order[place] for place in rng.permutation(len(order))]
    packed = pack(order, tokens, DATA.tokens_per_sequence, DATA.packing_window)
    count = DATA.sequences_per_step
    steps = [tuple(packed[start : start + count]) for start in range(0, len(packed), count)]
    steps[-1] = spread(steps[-1], tokens, count, DATA.tokens_per_sequence)
    return {"plan": digest_of(len(steps), *(steps[number] for number in checked(len(steps))))}


def make_dataset(folder: Path, rows: int) -> None:
    """Writes a dataset without pictures whose keys ascend, and the lengths of its samples."""
    layout = DatasetLayout(str(folder))
    Path(layout.train(0, "tar")).parent.mkdir(parents=True)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        shards = range(-(-rows // SHARD))
        entries = pool.map(partial(make_shard, str(folder), rows), shards, chunksize=1)
    manifest = Manifest(
        aligngpt_version="0",
        config={},
        versions={},
        model=None,
        rows_in=rows,
        kept=rows,
        rejected={},
        stages={},
        num_levels=8,
        level_edges=None,
        samples_per_shard=SHARD,
        shards=entries,
    )
    Path(layout.manifest).write_text(manifest.to_json())
    write_lengths(folder, rows, digest(manifest))


def digest(manifest: Manifest) -> str:
    """Returns the name of the file of lengths, as `measure_lengths` looks for it."""
    from training.data.dataset import manifest_fingerprint

    made_of = Encoder().identity() + manifest_fingerprint(manifest)
    return hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()


def make_shard(folder: str, rows: int, number: int) -> ShardEntry:
    """Returns what the manifest says of a shard, once its table is written."""
    count = min(SHARD, rows - number * SHARD)
    numbers = np.arange(count, dtype=np.uint64) + np.uint64(number * SHARD)
    keys = in_hex(numbers * np.uint64(2**63 // rows))
    hashes = in_hex(numbers * np.uint64(0x9E3779B97F4A7C15))
    keys[:, 16:24] = hashes[:, :8]
    rng = np.random.default_rng(number)
    said = WORDS[rng.integers(0, len(WORDS), (count // 10 + 1, 6))].tolist()
    captions = pa.array([" ".join(words) for words in said])
    columns: dict[str, Any] = {
        "key": texts(keys),
        "url": texts(keys),
        "caption": captions.take(pa.array(rng.integers(0, len(said), count))),
        "pixel_hash": texts(hashes),
        "alignment_level": pa.array(rng.integers(1, 9, count), pa.int8()),
        "image_offset": pa.array(np.arange(count) * 50_000),
        "image_bytes": pa.array(rng.integers(40_000, 49_000, count)),
        "source": pa.repeat("made up", count),
    }
    table = pa.table(
        {
            field.name: columns.get(field.name, pa.nulls(count, field.type))
            for field in TRAIN_SCHEMA
        },
        schema=TRAIN_SCHEMA,
    )
    path = Path(DatasetLayout(folder).train(number, "parquet"))
    write_table(table, str(path))
    return ShardEntry(
        name=f"{number:06d}",
        samples=count,
        tar_bytes=0,
        tar_sha256="",
        parquet_bytes=path.stat().st_size,
        parquet_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def in_hex(numbers: np.ndarray) -> np.ndarray:
    """Returns numbers of 64 bits as 32 characters, the last 16 of them 0, (n, 32)."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    bits = np.arange(60, -1, -4, dtype=np.uint64)
    places = ((numbers[:, None] >> bits) & np.uint64(15)).astype(np.int64)
    return np.concatenate([digits[places], np.full((len(numbers), 16), ord("0"), np.uint8)], axis=1)


def texts(characters: np.ndarray) -> pa.Array:
    """Returns rows of characters as texts."""
    offsets = pa.py_buffer(np.arange(0, characters.size + 1, 32, dtype=np.int32))
    data = pa.py_buffer(np.ascontiguousarray(characters))
    return pa.StringArray.from_buffers(len(characters), offsets, data)


def write_lengths(folder: Path, rows: int, name: str) -> None:
    """Writes the lengths of captions behind a picture, as `measure_lengths` keeps them."""
    (folder / "_lengths").mkdir()
    path = folder / "_lengths" / f"{name}.parquet"
    rng = np.random.default_rng(0)
    schema = pa.schema({key: pa.from_numpy_dtype(dtype) for key, dtype in COLUMNS.items()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, 2**20):
            count = min(2**20, rows - start)
            tokens = rng.integers(SHORTEST, LONGEST, count, dtype=np.int32)
            given = {"tokens": tokens, "whole_tokens": tokens}
            given |= {"targets": tokens - 590, "whole_targets": tokens - 590}
            others = {key: np.zeros(count, dtype) for key, dtype in COLUMNS.items()}
            writer.write_table(pa.table({**others, **given}, schema=schema))


if __name__ == "__main__":
    main()
