"""Reads ten million rows on one machine and prints the time and the peak memory it took.

    python benchmarks/read.py [--rows 10000000] [--files 10] [--folder /tmp/read-benchmark]

The rows look like web pairs: about 200 bytes each, one in twenty a duplicate, one in a hundred
without a caption. The memory is that of the process and all its children, sampled four times a
second: resident set size, pages shared between them counted once for each.
"""

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ReadConfig
from pipeline.read.inputs import check_inputs
from pipeline.read.transform import ReadPairs
from pipeline.report.balance import count_stages
from schemas.shards import DatasetLayout
from schemas.stages import Stage

WORDS = ("a", "red", "small", "photo", "of", "the", "house", "with", "cat", "and", "summer", "in")
GROUP_ROWS = 100_000


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, and keeps the highest."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._is_over = threading.Event()

    def run(self) -> None:
        """Samples until `stop`."""
        process = psutil.Process()
        while not self._is_over.wait(0.25):
            total = 0
            for each in (process, *process.children(recursive=True)):
                try:
                    total += each.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)

    def stop(self) -> int:
        """Returns the highest sum seen, in bytes."""
        self._is_over.set()
        self.join()
        return self.peak_bytes


def write_inputs(folder: Path, rows: int, files: int) -> None:
    """Writes the files to read."""
    random = np.random.default_rng(0)
    for number in range(files):
        path = folder / f"part-{number:03d}.parquet"
        schema = pa.schema([("URL", pa.string()), ("TEXT", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, rows // files, GROUP_ROWS):
                count = min(GROUP_ROWS, rows // files - start)
                writer.write_table(made_up_rows(random, count, rows).cast(schema))


def made_up_rows(random: np.random.Generator, count: int, rows: int) -> pa.Table:
    """Returns rows of which some are duplicates and some lack a caption."""
    # Of 9.7 x rows possible numbers, about one in twenty is drawn again somewhere.
    numbers = random.integers(0, int(rows * 9.7), count).tolist()
    is_missing = (random.random(count) < 0.01).tolist()
    urls = [
        f"https://host{number % 50021}.example.com/images/{number % 977}/{number:012d}/photo.jpg"
        for number in numbers
    ]
    texts = [
        None if missing else " ".join(WORDS[number // 3**step % 12] for step in range(18))
        for number, missing in zip(numbers, is_missing, strict=True)
    ]
    return pa.table({"URL": urls, "TEXT": texts})


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--quick", action="store_true", help="200,000 rows")
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="read-benchmark-"))
    inputs = folder / "in"
    inputs.mkdir(parents=True, exist_ok=True)
    write_inputs(inputs, 200_000 if arguments.quick else arguments.rows, arguments.files)
    layout = DatasetLayout(str(folder / "out"))
    shutil.rmtree(layout.root, ignore_errors=True)
    flags = ["--runner=FnApiRunner"]
    if arguments.workers > 1:
        flags += ["--direct_running_mode=multi_processing"]
        flags += [f"--direct_num_workers={arguments.workers}"]
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    config = ReadConfig()
    options = beam.options.pipeline_options.PipelineOptions(flags)
    with beam.Pipeline(options=options) as pipeline:
        _ = pipeline | ReadPairs(layout, config, check_inputs([f"{inputs}/*.parquet"], config))
    seconds = time.perf_counter() - start
    peak_bytes = memory.stop()
    counts = count_stages(layout)[Stage.READ.value]
    print(f"rows in      {counts.rows_in:>12,}")
    print(f"kept         {counts.kept:>12,}")
    for reason, count in counts.rejected.items():
        print(f"{reason:<12} {count:>12,}")
    print(f"seconds      {seconds:>12,.1f}")
    print(f"rows/s       {counts.rows_in / seconds:>12,.0f}")
    print(f"peak memory  {peak_bytes / 2**20:>12,.0f} MiB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
