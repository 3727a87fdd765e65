"""Read: from input files to `pairs/`, shards of key-sorted pairs of exact size.

A sort in pieces, with only references in Beam:

1. each part of an input becomes *runs*: Arrow files of its cleaned rows, one batch for each
   partition of the keys;
2. each partition is gathered from all runs, sorted by key and freed of duplicate rows;
3. the counts of the partitions say which rows of which partitions make each shard.

So a shard's content depends on the set of input rows alone: not on their order or files, nor on
the number of partitions or workers. What is done is found again when a stopped job is repeated.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipeline.config import ReadConfig
from pipeline.dataset.commits import stage_fingerprint
from pipeline.dataset.deny import DenyFiles, DenyLists, read_lists
from pipeline.dataset.ownership import listed_files, stage_folders
from pipeline.dataset.progress import ShardProgress, begin_step, end_piece
from pipeline.dataset.worktimes import timed
from pipeline.read.formats import read_split
from pipeline.read.inputs import InputFile, InputFormat
from pipeline.read.kept import KeptTypes, found_types, types_as_text, types_from_text
from pipeline.read.rows import clean_rows
from pipeline.read.shuffle import (
    RunWriter,
    ShardRange,
    plan_shards,
    sort_partition,
    write_pairs_shard,
)
from pipeline.read.splits import InputSplit, plan_splits
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    exists,
    list_files,
    read_json,
    remove,
    remove_folder,
)

PARTITION_BYTES = 64 * 1024 * 1024
"""Aimed-at size of a partition: what a worker holds in memory two or three times over."""

MAX_PARTITIONS = 4096


class ReadPairs(beam.PTransform):
    """Reads the input files into shards of pairs and gives the shards' numbers."""

    def __init__(
        self, layout: DatasetLayout, config: ReadConfig, inputs: Sequence[InputFile]
    ) -> None:
        super().__init__()
        self._layout, self._config, self._inputs = layout, config, inputs

    def expand(self, start: beam.pvalue.PBegin) -> beam.PCollection:
        """Returns the numbers of the shards, once all are written."""
        reading = Reading.of(self._layout, self._config, self._inputs)
        one = start | beam.Create([None])
        spilled = (
            one
            | "Split" >> beam.FlatMap(lambda _: reading.splits())
            | "SpreadSplits" >> beam.Reshuffle()
            | "Spill" >> beam.Map(reading.spill)
        )
        sorted_ = (
            one
            | "Partition"
            >> beam.FlatMap(lambda _, done: reading.partitions(done), beam.pvalue.AsIter(spilled))
            | "SpreadPartitions" >> beam.Reshuffle()
            | "Sort" >> beam.Map(reading.sort)
        )
        written = (
            one
            | "Cut"
            >> beam.FlatMap(lambda _, counts: reading.ranges(counts), beam.pvalue.AsIter(sorted_))
            | "SpreadShards" >> beam.Reshuffle()
            | "Write" >> beam.Map(reading.write)
        )
        return one | "Finish" >> beam.FlatMap(
            lambda _, shards: reading.finish(shards), beam.pvalue.AsIter(written)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of given inputs into a dataset: its steps, each of which can be repeated."""

    layout: DatasetLayout
    config: ReadConfig
    files: tuple[InputFile, ...]
    fingerprint: str
    """Of the inputs and the configuration; what was done under it is not done again."""
    num_partitions: int

    @classmethod
    def of(cls, layout: DatasetLayout, config: ReadConfig, files: Sequence[InputFile]) -> "Reading":
        """Returns the reading of these files under this configuration."""
        total_bytes = sum(file.estimated_bytes for file in files)
        return cls(
            layout=layout,
            config=config,
            files=tuple(files),
            fingerprint=stage_fingerprint(
                Stage.READ, _settings(config, files), [file.identity for file in files]
            ),
            num_partitions=min(1 + total_bytes // PARTITION_BYTES, MAX_PARTITIONS),
        )

    @property
    def folder(self) -> str:
        """Where the work in between lies until all shards are written."""
        return f"{self.layout.run}/read/{self.fingerprint}"

    @property
    def marker(self) -> str:
        """File that says that all shards are written, and from what."""
        return f"{self.layout.run}/read.json"

    def splits(self) -> list[InputSplit]:
        """Returns the parts to read: none if the shards stand already."""
        if self.is_done():
            return []
        splits = plan_splits(self.files)
        rows = [split.rows for split in splits]
        begin_step(self.layout, Stage.READ, "", sum(rows) if all(rows) else 0)
        return splits

    def is_done(self) -> bool:
        """Returns whether these inputs stand as shards already."""
        marker = _read_json(self.marker)
        if marker is None or marker["fingerprint"] != self.fingerprint:
            return False
        standing = list_files(self.layout.folder(Stage.READ), ".parquet")
        return set(standing) == {self.layout.pairs(shard) for shard in range(marker["shards"])}

    def spill(self, split: InputSplit) -> int:
        """Writes the runs of a part of the input and returns its number."""
        done = f"{self.folder}/runs/{split.number:05d}.json"
        if exists(done):
            return split.number
        with timed(self.layout, Stage.READ, "spill") as work:
            work.rows = self._spill(split, done)
        return split.number

    def _spill(self, split: InputSplit, done: str) -> int:
        """Writes the runs of a part of the input and `done`; returns how many rows it has."""
        deny = deny_lists(self.config)
        writer = RunWriter(f"{self.folder}/runs/{split.number:05d}", self.num_partitions)
        with ShardProgress(self.layout, Stage.READ, split.number, split.rows) as progress:
            kept = rejected = 0
            types = KeptTypes()
            for raw in read_split(split, self.config):
                rows = clean_rows(raw, split.file.name, split.file.image_folder, deny)
                writer.add(rows)
                if self.config.keep_columns:
                    types.add(_types_of(split.file, raw))
                bad = rows.num_rows - rows["reason"].null_count
                kept, rejected = kept + rows.num_rows - bad, rejected + bad
                progress.update(kept, rejected)
        joined = types_as_text(types.joined(self._kept_names()))
        commit_text(done, json.dumps({"runs": writer.finish(), "kept": joined}))
        return kept + rejected

    def _kept_names(self) -> list[str]:
        return [new for _, new in self.config.kept_names]

    def _kept_types(self) -> pa.Schema:
        """Returns the types of the columns that are kept, once all parts are read."""
        if not self.config.keep_columns:
            return pa.schema([])
        done = list_files(f"{self.folder}/runs", ".json")
        seen = [types_from_text(read_json(path)["kept"]) for path in done]
        return KeptTypes(seen).joined(self._kept_names())

    def partitions(self, spilled: Iterable[int]) -> Iterator[int]:
        """Yields the partitions to sort, once all parts are spilled."""
        if sum(1 for _ in spilled):
            begin_step(self.layout, Stage.READ, "sort", self.num_partitions)
            yield from range(self.num_partitions)

    def _unseen_columns(self) -> list[str]:
        """Returns the columns that are to be kept and of which no row had a value."""
        kinds = self._kept_types()
        return [field.name for field in kinds if pa.types.is_null(field.type)]

    def sort(self, partition: int) -> tuple[int, int, int]:
        """Sorts a partition; returns its number, its pairs and its rejected rows."""
        done = f"{self.folder}/sorted/{partition:05d}.json"
        counts = _read_json(done)
        if counts is None:
            runs = [
                run
                for path in list_files(f"{self.folder}/runs", ".json")
                for run in (_read_json(path) or {})["runs"]
            ]
            with timed(self.layout, Stage.READ, "sort") as work:
                kept, rejected = sort_partition(runs, partition, f"{self.folder}/sorted")
                work.rows = kept + rejected
            counts = {"kept": kept, "rejected": rejected}
            commit_text(done, json.dumps(counts))
        end_piece(self.layout, Stage.READ, "sort", partition)
        return partition, counts["kept"], counts["rejected"]

    def ranges(self, sorted_counts: Iterable[tuple[int, int, int]]) -> Iterator[ShardRange]:
        """Yields what each shard is made of, once all partitions are sorted.

        How many there are is written down first: should the job be killed, the next one knows by
        it which files in `pairs/` are its own.
        """
        counts = sorted(sorted_counts)
        if counts:
            shards = plan_shards(
                [kept for _, kept, _ in counts],
                [rejected for _, _, rejected in counts],
                self.config.pairs_per_shard,
            )
            plan = {"shards": len(shards), "kept": types_as_text(self._kept_types())}
            commit_text(f"{self.folder}/shards.json", json.dumps(plan))
            begin_step(self.layout, Stage.READ, "write", len(shards))
            yield from shards

    def write(self, shard: ShardRange) -> tuple[int, int, int]:
        """Writes a shard; returns its number, its pairs and its rejected rows."""
        types = types_from_text(read_json(f"{self.folder}/shards.json")["kept"])
        with timed(self.layout, Stage.READ, "write") as work:
            kept, rejected = write_pairs_shard(self.layout, shard, f"{self.folder}/sorted", types)
            work.rows = kept + rejected
        end_piece(self.layout, Stage.READ, "write", shard.shard)
        return shard.shard, kept, rejected

    def finish(self, written: Iterable[tuple[int, int, int]]) -> list[int]:
        """Returns the numbers of all shards, once they are written; cleans up behind them."""
        shards = sorted(written)
        marker = _read_json(self.marker)
        if not shards and self.is_done() and marker is not None:
            return list(range(marker["shards"]))
        numbers = [shard for shard, kept, _ in shards if kept]
        remove_stale_shards(self.layout, len(numbers))
        balance = {
            "fingerprint": self.fingerprint,
            "files": [file.path for file in self.files],
            "shards": len(numbers),
            "pairs_per_shard": self.config.pairs_per_shard,
            "kept": sum(kept for _, kept, _ in shards),
            "rejected": sum(rejected for _, _, rejected in shards),
            "unseen_columns": self._unseen_columns(),
        }
        commit_text(self.marker, json.dumps(balance, indent=2) + "\n")
        remove_folder(f"{self.layout.run}/read")
        return numbers


def _types_of(file: InputFile, raw: pa.Table) -> pa.Schema:
    """Returns the types of the columns that are kept: as the file declares, or as rows have it."""
    if file.kept_types is not None:
        return file.kept_types
    return found_types(raw["kept"], file.format in (InputFormat.CSV, InputFormat.TSV))


def _settings(config: ReadConfig, files: Sequence[InputFile]) -> dict[str, Any]:
    """Returns what decides a reading, later settings only where they change what it was before."""
    settings = dataclasses.asdict(config)
    if config.verify_hashes or not any(file.columns.unread_hashes for file in files):
        del settings["verify_hashes"]
    if not config.keep_columns:
        del settings["keep_columns"]
    del settings["deny_urls"], settings["deny_hosts"]
    deny = deny_lists(config)
    return settings if deny is None else {**settings, "deny": deny.fingerprint}


def deny_lists(config: ReadConfig) -> DenyLists | None:
    """Returns the lists that a reading keeps to; None without any.

    Raises:
        ConfigError: if one is not there.
    """
    files = DenyFiles(urls=config.deny_urls, hosts=config.deny_hosts)
    return read_lists(files) if files else None


def remove_stale_shards(layout: DatasetLayout, shards: int) -> None:
    """Removes what an earlier, longer input left in shards that no longer exist."""
    for folder, stage in stage_folders().items():
        if stage is Stage.PACK:
            continue
        # Of an empty input, what was rejected still lies in shard 0.
        kept = max(shards, 1) if stage is Stage.READ else shards
        for path in listed_files(layout, folder):
            number = re.match(r"\d+", path.rsplit("/", 1)[-1])
            if number and int(number[0]) >= kept:
                remove(path)
    if shards == 0 and layout.pairs(0) in listed_files(layout, "pairs"):
        remove(layout.pairs(0))


def _read_json(path: str) -> dict[str, Any] | None:
    if not exists(path):
        return None
    return read_json(path)
