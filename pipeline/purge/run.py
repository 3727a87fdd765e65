"""Purge: rewrites what holds pairs that deny-lists name, and proves that they are gone."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from pipeline.dataset.deny import DenyFiles, DenyLists, read_lists
from pipeline.dataset.derivation import read_derivation, write_derivation
from pipeline.dataset.guard import config_from_json, remove_leftovers, stored_config
from pipeline.dataset.ownership import recorded_folder
from pipeline.dataset.train_shards import write_index
from pipeline.job.derive import report_anew
from pipeline.job.lock import hold_folder
from pipeline.purge.rewrite import (
    Denied,
    blank_rejections,
    drop_rows,
    note_rejections,
    restate,
    rewrite_fetched,
    rewrite_train,
)
from pipeline.purge.search import denied_tokens, find_denied, read_rows, traces_of
from schemas.command_line import counted
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout, shard_number
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    exists,
    file_sizes,
    is_local,
    list_files,
    local_path,
    read_json,
    remove_folder,
)
from schemas.terminal import Console

KEYED = (Stage.RECAPTION, Stage.LEVEL, Stage.DEDUPLICATE, Stage.SCORE)
"""Stages whose tables tell of a pair by its key, without its address: they are rewritten before
those by which a purge that was stopped finds it again."""


def purge_dataset(root: str, files: DenyFiles, console: Console) -> None:
    """Rewrites a finished dataset without what the lists name, or what of that is not done yet.

    Raises:
        ConfigError: if no list is given, one is not there, or the dataset is at work.
        DatasetError: if there is no dataset, it is not finished, or something still stands in it.
    """
    if not files:
        raise ConfigError("give --deny-urls, --deny-hosts or --deny-hashes")
    deny = read_lists(files)
    layout = DatasetLayout(root)
    stored = stored_config(layout)
    if stored is None or not exists(layout.manifest):
        raise DatasetError(f"{root} is no finished dataset: purge what `curate` has finished")
    with hold_folder(layout), recorded_folder(layout, console.print) as record:
        remove_leftovers(layout)
        denied = find_denied(layout, deny)
        console.print(
            f"{counted(len(denied), 'pair')} {'is' if len(denied) == 1 else 'are'} denied."
        )
        record.begin(tuple(Stage), has_report=True)
        if denied:
            _rewrite(layout, denied)
        _clean_run_folder(layout, deny, denied)
        report_anew(layout, config_from_json(stored))
        count, traces = traces_of(layout, deny, denied)
    if traces:
        more = f" and {len(traces) - 5:,} more" if len(traces) > 5 else ""
        raise DatasetError(
            f"{root} still holds what is denied: {'; '.join(traces[:5])}{more}. Run the command "
            "again; if it stays, remove these files"
        )
    console.print(
        f"Read all {count:,} files of {root} again: none holds any of it. Copies elsewhere are not "
        "reached: selections, mergers, publications, backups, versions that a store keeps."
    )


def _rewrite(layout: DatasetLayout, denied: Denied) -> None:
    _reject_in_read(layout, denied)
    for stage in KEYED:
        for path in list_files(layout.folder(stage), ".parquet"):
            drop_rows(path, denied)
    for stage in Stage:
        for path in list_files(layout.rejected_folder(stage), ".parquet"):
            if stage is Stage.READ:
                blank_rejections(path, denied)
            else:
                drop_rows(path, denied)
    _count_levels(layout)
    _rewrite_train(layout, denied)
    for path in list_files(layout.folder(Stage.READ), ".parquet"):
        drop_rows(path, denied)
    for path in list_files(layout.folder(Stage.FETCH), ".parquet"):
        shard = shard_number(path)
        if _holds(path, denied):
            rewrite_fetched(layout, shard, denied)
        if exists(layout.rejected(Stage.FETCH, shard)):
            restate(layout, shard)


def _reject_in_read(layout: DatasetLayout, denied: Denied) -> None:
    """Puts the denied pairs of each shard among what the read stage rejected, before they go."""
    for path in list_files(layout.folder(Stage.READ), ".parquet"):
        rows = [row for row in read_rows(path, ["key", "source"]) if row["key"] in denied]
        if rows:
            table = pa.table({name: [row[name] for row in rows] for name in ("key", "source")})
            note_rejections(layout, shard_number(path), table, denied)


def _rewrite_train(layout: DatasetLayout, denied: Denied) -> None:
    """Rewrites the train shards that hold denied samples, and the index of all."""
    packed = []
    lost: dict[str, int] = {}
    for path in list_files(layout.folder(Stage.PACK), ".parquet"):
        shard = shard_number(path)
        keys = [row["key"] for row in read_rows(path, ["key"])]
        gone = [key for key in keys if key in denied]
        for key in gone:
            lost[denied[key].value] = lost.get(denied[key].value, 0) + 1
        if gone:
            rewrite_train(layout, shard, denied)
        tar_bytes = _tar_bytes(path)
        packed.append((shard, len(keys) - len(gone), tar_bytes))
    derivation = read_derivation(layout)
    if derivation is not None and lost:
        counts = dict(derivation.rejected)
        for reason, count in lost.items():
            counts[reason] = counts.get(reason, 0) + count
        write_derivation(layout, replace(derivation, rejected=counts))
    write_index(layout, packed)


def _tar_bytes(path: str) -> int:
    folder, tar = path.rsplit("/", 1)[0], path.removesuffix(".parquet") + ".tar"
    return file_sizes(folder)[tar]


def _count_levels(layout: DatasetLayout) -> None:
    """Brings the counts of the levels up to date; their edges stay where they were cut."""
    if not exists(layout.edges):
        return
    values = read_json(layout.edges)
    scores: dict[int, list[float]] = {}
    for path in list_files(layout.folder(Stage.LEVEL), ".parquet"):
        for row in read_rows(path, ["clip_score", "alignment_level"]):
            scores.setdefault(row["alignment_level"], []).append(row["clip_score"])
    for level in values["levels"]:
        found = scores.get(level["level"], [])
        level["count"] = len(found)
        level["min_score"] = min(found, default=None)
        level["max_score"] = max(found, default=None)
    values["count"] = sum(map(len, scores.values()))
    commit_text(layout.edges, json.dumps(values, indent=2, sort_keys=True) + "\n")


def _clean_run_folder(layout: DatasetLayout, deny: DenyLists, denied: Denied) -> None:
    """Takes lines that tell of denied pairs out of logs, and what stages left in between away."""
    for name in ("read", "deduplicate", "retry"):
        remove_folder(f"{layout.run}/{name}")
    if not is_local(layout.run):
        return
    for path in Path(local_path(layout.run), "logs").glob("*"):
        tokens = {text.encode() for text in denied_tokens(str(path), deny, set(denied))}
        if tokens:
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if not any(token in line for token in tokens)]
            commit_text(str(path), b"".join(kept).decode(errors="replace"))


def _holds(path: str, denied: Denied) -> bool:
    return any(row["key"] in denied for row in read_rows(path, ["key"]))
