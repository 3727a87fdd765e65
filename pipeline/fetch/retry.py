"""Retry: asks again for what a fetched shard lacks, and merges the gains into it.

The new files of a shard are written aside, under `_run/retry/`. Once they are complete they are
moved into place one by one; a job that is killed in between is finished by the next one, whatever
its command, before it does anything else. So no image that the dataset has is ever at risk.
"""

import dataclasses
import heapq
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.config import CurationConfig, FetchConfig
from pipeline.dataset.commits import stage_fingerprint
from pipeline.dataset.guard import config_from_json, config_path, has_output, stored_config
from pipeline.dataset.manifests import refuse_no_folder
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.rejections import count_reasons
from pipeline.dataset.tars import read_members
from pipeline.dataset.worktimes import StepTime, timed
from pipeline.fetch.shard import (
    asked_fingerprint,
    fetch_pairs,
    read_kept_fields,
    read_pairs,
)
from pipeline.fetch.sharing import FetchSession
from pipeline.fetch.spool import (
    Fetched,
    Spool,
    fetched_sample,
    read_spool,
    shard_stats,
    write_samples,
)
from schemas.columns import read_table, records_from_table, table_from_records, write_table
from schemas.errors import ConfigError, DatasetError, RejectReason
from schemas.many_files import read_many
from schemas.records import FETCHED_SCHEMA, REJECTION_SCHEMA, FetchedSample, Rejection
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_file,
    commit_text,
    exists,
    list_files,
    move_file,
    open_read,
    read_json,
    remove,
    remove_folder,
)

OPTED_OUT = frozenset(
    {
        RejectReason.ROBOTS_DISALLOWED,
        RejectReason.OPTED_OUT_BY_HEADER,
        RejectReason.TDM_RESERVED,
    }
)
"""Reasons that are a host's own wish: such an image is never asked for twice."""

RETRY = "retry"
"""What the work of asking again goes by: a step of the fetch stage."""

READY = "ready.json"
"""File in a shard's folder of new files that says that they are complete."""


@dataclass(frozen=True, slots=True)
class RetrySession:
    """One retry of a dataset: a job that goes on with it asks no shard twice."""

    token: str
    reasons: tuple[str, ...]
    """Empty for all that are retryable."""

    def includes(self, row: Rejection) -> bool:
        """Returns whether a rejected pair is asked for again."""
        return row.reason in self.reasons if self.reasons else row.is_retryable


def check_reasons(reasons: Sequence[str]) -> tuple[str, ...]:
    """Returns the reasons to ask again for.

    Raises:
        ConfigError: if one is unknown, of another stage, or a host's wish.
    """
    allowed = [
        reason.value
        for reason in RejectReason
        if reason.stage is Stage.FETCH and reason not in OPTED_OUT
    ]
    for reason in reasons:
        if reason not in allowed:
            raise ConfigError(f"--reasons takes {', '.join(allowed)}; got {reason!r}")
    return tuple(sorted(set(reasons)))


def stages_to_repeat(layout: DatasetLayout, config: CurationConfig) -> tuple[Stage, ...]:
    """Returns the stages that a dataset has gone through, from fetch on."""
    stages = config.stages[config.stages.index(Stage.FETCH) :]
    last = max([0, *(at for at, stage in enumerate(stages) if has_output(layout, stage))])
    return stages[: last + 1]


def retry_settings(root: str, reasons: Sequence[str]) -> dict[str, Any]:
    """Returns what a retry asks of the job: the stages that the dataset has gone through.

    Raises:
        ConfigError: if there is no such folder, or a reason is none that can be asked again for.
        DatasetError: if the folder holds no dataset.
    """
    refuse_no_folder(root)
    layout = DatasetLayout(root)
    stored = stored_config(layout)
    if stored is None:
        raise DatasetError(f"{root} is no dataset: it has no {config_path(layout)}")
    config = config_from_json(stored)
    return {
        "root": root,
        "config": config,
        "stages": stages_to_repeat(layout, config),
        "has_report": exists(layout.manifest),
        "retry": check_reasons(reasons),
    }


def begin_retry(layout: DatasetLayout, reasons: tuple[str, ...]) -> RetrySession:
    """Returns the session that a job stopped in, if it was for the same reasons; else a new one."""
    path = _session_path(layout)
    if exists(path):
        values = read_json(path)
        if tuple(values["reasons"]) == reasons:
            return RetrySession(values["token"], reasons)
    session = RetrySession(uuid.uuid4().hex, reasons)
    commit_text(path, json.dumps(dataclasses.asdict(session)))
    return session


def end_retry(layout: DatasetLayout, session: RetrySession) -> str:
    """Closes a session; returns what came of it, in words."""
    asked = gained = 0
    for content in read_many(list_files(layout.folder(Stage.FETCH), Stage.FETCH.marker)):
        retry = json.loads(content or b"{}").get("retry")
        if retry is not None and retry["token"] == session.token:
            asked, gained = asked + retry["asked"], gained + retry["gained"]
    remove(_session_path(layout))
    return f"Asked again for {asked:,} images, gained {gained:,}."


def _session_path(layout: DatasetLayout) -> str:
    return f"{layout.run}/retry.json"


def retry_shard(
    layout: DatasetLayout,
    shard: int,
    config: FetchConfig,
    session: RetrySession,
    fetching: FetchSession | None = None,
) -> None:
    """Asks again for what a fetched shard lacks, unless this session has done so already.

    Raises:
        DatasetError: if the shard's tables are not those of its pairs.
    """
    stats = read_json(layout.fetched(shard, "_stats.json"))
    rejections = _read_rejections(layout, shard)
    wanted = {row.key for row in rejections if session.includes(row)}
    is_done = stats.get("retry", {}).get("token") == session.token
    if is_done or not wanted:
        return
    with timed(layout, Stage.FETCH, RETRY, tells_start=True) as work:
        work.rows = len(wanted)
        _ask_again(layout, shard, config, session, fetching, stats, rejections, work)


def _ask_again(
    layout: DatasetLayout,
    shard: int,
    config: FetchConfig,
    session: RetrySession,
    fetching: FetchSession | None,
    stats: dict[str, Any],
    rejections: Sequence[Rejection],
    work: StepTime,
) -> None:
    """Asks for the images of rejected rows, and commits what came of it.

    Args:
        stats: of the shard, as they are.
        rejections: of the shard, those that are not asked for again among them.
        work: is told what was downloaded.
    """
    wanted = {row.key for row in rejections if session.includes(row)}
    started_at = time.time()
    pairs = [pair for pair in read_pairs(layout, shard) if pair.key in wanted]
    if len(pairs) != len(wanted):
        raise DatasetError(
            f"{layout.rejected(Stage.FETCH, shard)} has rows that are not in "
            f"{layout.pairs(shard)}: remove what was fetched with --redo fetch"
        )
    others = [row for row in rejections if row.key not in wanted]
    first_fingerprint = asked_fingerprint(layout.fetched(shard, "_stats.json"))
    folder = _folder(layout, shard)
    remove_folder(folder)
    with (
        ShardProgress(layout, Stage.FETCH, shard, len(pairs)) as progress,
        Spool() as spool,
    ):
        gained, again = fetch_pairs(pairs, config, fetching, spool, progress, work)
        fingerprint = stats["fingerprint"]
        if gained:
            new = read_spool(gained, spool, config.image_format)
            rows = [fetched_sample(*item, config.image_format) for item in gained]
            fingerprint = _write_merged(layout, shard, first_fingerprint, rows, new)
    left = sorted([*again, *others], key=lambda row: row.key)
    with commit_file(f"{folder}/rejected.parquet") as file:
        write_table(table_from_records(left, REJECTION_SCHEMA), file, {"fingerprint": fingerprint})
    new_stats = {
        **shard_stats(count_reasons(left), stats["kept"] + len(gained), started_at),
        "start_time": stats["start_time"],
        "duration": stats["duration"] + time.time() - started_at,
        "asked_fingerprint": first_fingerprint,
        "retry": {"token": session.token, "asked": len(wanted), "gained": len(gained)},
        "fingerprint": fingerprint,
    }
    commit_text(f"{folder}/stats.json", json.dumps(new_stats, indent=2) + "\n")
    commit_text(f"{folder}/{READY}", "{}")
    finish_move(layout, shard)


def _write_merged(
    layout: DatasetLayout,
    shard: int,
    first_fingerprint: str | None,
    rows: Sequence[FetchedSample],
    new: Iterator[Fetched],
) -> str:
    """Writes a shard's samples and the new ones aside; returns the fingerprint of them all.

    Args:
        first_fingerprint: the fingerprint that the shard was first fetched under.
        rows: of the new samples.
        new: the new samples with their images, in the order of their keys.
    """
    standing = _read_rows(layout, shard)
    fingerprint = _fingerprint(first_fingerprint, [*standing, *rows])
    merged = heapq.merge(_read_samples(layout, shard, standing), new, key=_key_of)
    folder = _folder(layout, shard)
    paths = f"{folder}/new.tar", f"{folder}/new.parquet"
    write_samples(merged, *paths, fingerprint, read_kept_fields(layout, shard))
    return fingerprint


def _fingerprint(asked: str | None, samples: Sequence[FetchedSample]) -> str:
    """Returns what a shard's content goes by after a retry: the same for the same images."""
    content = sorted(
        f"{row.key} {row.sha256} {row.pixel_hash} {json.dumps(row.more_images)}" for row in samples
    )
    return stage_fingerprint(Stage.FETCH, {"asked": asked}, content)


def _key_of(item: Fetched) -> str:
    return item[0].key


def _read_rejections(layout: DatasetLayout, shard: int) -> list[Rejection]:
    with open_read(layout.rejected(Stage.FETCH, shard)) as file:
        return [Rejection(**row) for row in read_table(file, REJECTION_SCHEMA).to_pylist()]


def _read_rows(layout: DatasetLayout, shard: int) -> list[FetchedSample]:
    with open_read(layout.fetched(shard, "parquet")) as file:
        return records_from_table(read_table(file, FETCHED_SCHEMA), FetchedSample)


def _read_samples(
    layout: DatasetLayout, shard: int, rows: Sequence[FetchedSample]
) -> Iterator[Fetched]:
    """Yields the samples of a fetched shard with their images, those of one in memory at a time."""
    images = read_members(layout, shard, [name for row in rows for name in row.image_members])
    for row in rows:
        yield row, tuple(islice(images, len(row.image_members)))


def finish_moves(layout: DatasetLayout) -> None:
    """Brings into place what a job that was stopped had ready, and drops what it had not."""
    for folder in list_files(f"{layout.run}/retry"):
        finish_move(layout, int(folder.rsplit("/", 1)[-1]))


def finish_move(layout: DatasetLayout, shard: int) -> None:
    """Moves a shard's new files into place, if they are complete; otherwise drops them.

    Each step can be repeated; the shard counts as fetched again with the last.
    """
    folder = _folder(layout, shard)
    if exists(f"{folder}/{READY}"):
        marker = layout.fetched(shard, "_stats.json")
        if exists(f"{folder}/stats.json"):
            remove(marker)
        move_file(f"{folder}/new.tar", layout.fetched(shard, "tar"))
        move_file(f"{folder}/new.parquet", layout.fetched(shard, "parquet"))
        move_file(f"{folder}/rejected.parquet", layout.rejected(Stage.FETCH, shard))
        move_file(f"{folder}/stats.json", marker)
        remove(f"{folder}/{READY}")
    remove_folder(folder)


def _folder(layout: DatasetLayout, shard: int) -> str:
    return f"{layout.run}/retry/{shard:05d}"
