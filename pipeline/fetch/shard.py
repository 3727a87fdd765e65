"""A shard of pairs is fetched: its images, tarred in the order of their keys."""

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import FetchConfig
from pipeline.dataset.commits import deciding_settings, stage_fingerprint
from pipeline.dataset.credentials import without_credentials
from pipeline.dataset.deny import DENIED
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.rejections import count_reasons, rejection, write_rejections
from pipeline.dataset.worktimes import StepTime, timed
from pipeline.fetch.images import ShardFetcher
from pipeline.fetch.process_settings import asking, settings_of_fetching
from pipeline.fetch.sharing import FetchSession
from pipeline.fetch.spool import (
    KeptPair,
    Outcome,
    Spool,
    SpooledImage,
    read_spool,
    shard_stats,
    write_samples,
)
from schemas.columns import kept_fields, read_table, records_from_table
from schemas.errors import DatasetError, SampleRejected
from schemas.records import PAIR_SCHEMA, Pair, Rejection, json_text
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    committed_fingerprint,
    is_local,
    open_read,
    read_json,
    remove,
)

NOT_DECIDING = (
    "connections",
    "connections_per_host",
    "requests_per_second_per_host",
    "sharing_workers",
    "max_buffered_bytes",
    "decode_processes",
    "shards_at_once",
    "deny_hashes",
    "proxy",
)
"""Settings of `FetchConfig` that change how fast a shard is fetched, not what comes of it."""

_preparing = threading.Lock()
"""Held by who reads a shard from a disk and takes its URLs apart, which is work as well: the first
of several shards that begin together is ready sooner, and the others while hosts are waited for."""

_writing = threading.Lock()
"""Held by who writes a shard to a disk, which is work: two would both take from who asks."""


def fetch_shard(
    layout: DatasetLayout, shard: int, config: FetchConfig, session: FetchSession | None = None
) -> None:
    """Fetches the images of a shard of pairs, unless that is done already.

    Args:
        session: which other shards are fetched in as well, with what is known of hosts; without
            one, the shard is fetched by itself.

    Raises:
        DatasetError: if the shard's pairs are not there.
        WorkAbandoned: if the session was abandoned.
    """
    fingerprint = fetch_fingerprint(layout, shard, config)
    marker = layout.fetched(shard, "_stats.json")
    if asked_fingerprint(marker) == fingerprint:
        return
    remove(marker)
    with settings_of_fetching():  # till what was in memory is gone
        _fetch_and_write(layout, shard, config, session, fingerprint)


def _fetch_and_write(
    layout: DatasetLayout,
    shard: int,
    config: FetchConfig,
    session: FetchSession | None,
    fingerprint: str,
) -> None:
    with timed(layout, Stage.FETCH, "fetch", tells_start=True) as work:
        started_at = time.time()
        with ExitStack() as opened:
            with _preparing if is_local(layout.root) else nullcontext():
                pairs = read_pairs(layout, shard)
                progress = opened.enter_context(
                    ShardProgress(layout, Stage.FETCH, shard, len(pairs))
                )
                spool = opened.enter_context(Spool())
                fetcher = ShardFetcher(pairs, config, spool, progress)
            kept, rejections = _fetch(fetcher, pairs, config, session, progress, work)
            with _writing if is_local(layout.root) else nullcontext():
                samples = read_spool(kept, spool, config.image_format)
                tar, table = layout.fetched(shard, "tar"), layout.fetched(shard, "parquet")
                write_samples(samples, tar, table, fingerprint, read_kept_fields(layout, shard))
                write_rejections(layout, Stage.FETCH, shard, rejections, fingerprint)
        stats = shard_stats(count_reasons(rejections), len(kept), started_at)
        text = json.dumps({**stats, "fingerprint": fingerprint}, indent=2) + "\n"
        commit_text(layout.fetched(shard, "_stats.json"), text)
        work.rows = len(pairs)


def fetch_fingerprint(layout: DatasetLayout, shard: int, config: FetchConfig) -> str:
    """Returns the fingerprint of fetching a shard of pairs under a configuration.

    Raises:
        DatasetError: if the shard's pairs are not there.
    """
    upstream = committed_fingerprint(layout.pairs(shard))
    if upstream is None:
        raise DatasetError(f"{layout.pairs(shard)} is missing: run the read stage first")
    later = () if config.blur_boxes else ("blur_boxes",)
    settings = deciding_settings(config, leave_out=(*NOT_DECIDING, *later))
    return stage_fingerprint(Stage.FETCH, settings, [upstream])


def asked_fingerprint(marker: str) -> str | None:
    """Returns the fingerprint that a shard was first fetched under; None if it is not fetched.

    What a retry gains gives the shard a new fingerprint, by which later stages see the change;
    the first one is kept beside it, by which the fetch stage knows that nothing is left to do.
    """
    try:
        values = read_json(marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return str(values.get("asked_fingerprint", values["fingerprint"]))


def read_pairs(layout: DatasetLayout, shard: int) -> list[Pair]:
    """Returns the pairs of a shard, in the order of their keys."""
    with open_read(layout.pairs(shard)) as file:
        return [_clean(pair) for pair in records_from_table(read_table(file, PAIR_SCHEMA), Pair)]


def read_kept_fields(layout: DatasetLayout, shard: int) -> list[pa.Field]:
    """Returns the columns of the input's own that the pairs of a shard have."""
    with open_read(layout.pairs(shard)) as file:
        return kept_fields(pq.read_schema(file))


def fetch_pairs(
    pairs: list[Pair],
    config: FetchConfig,
    session: FetchSession | None,
    spool: Spool,
    progress: ShardProgress,
    work: StepTime,
) -> tuple[list[KeptPair], list[Rejection]]:
    """Returns the pairs that are kept, their images in the spool, and the rejections of the others.

    Both stand in the order of the pairs. Of several images, the first that fails is the reason.

    Args:
        work: is told what was downloaded, what starting took, and what rows took in the middle.
    """
    with settings_of_fetching():
        fetcher = ShardFetcher(pairs, config, spool, progress)
        return _fetch(fetcher, pairs, config, session, progress, work)


def _fetch(
    fetcher: ShardFetcher,
    pairs: list[Pair],
    config: FetchConfig,
    session: FetchSession | None,
    progress: ShardProgress,
    work: StepTime,
) -> tuple[list[KeptPair], list[Rejection]]:
    kept: list[KeptPair] = []
    rejections: list[Rejection] = []
    with ExitStack() as own, asking():
        session = session or own.enter_context(FetchSession(config))
        found = session.run(fetcher.run)
        start, flow = session.take_pace()
    work.first_seconds, work.first_cpu_seconds = start.seconds, start.cpu_seconds
    work.flow_rows, work.flow_seconds = flow.rows, flow.seconds
    work.flow_cpu_seconds = flow.cpu_seconds
    work.bytes = progress.downloaded_bytes
    for pair, outcomes in zip(pairs, found, strict=True):
        failed = first_failure(outcomes)
        if failed is None:
            kept.append((pair, cast(tuple[SpooledImage, ...], outcomes)))
        else:
            rejections.append(rejection(pair, failed))
    return kept, rejections


def first_failure(outcomes: Sequence[Outcome]) -> SampleRejected | None:
    """Returns why a pair's images are not all there, by the first that is not; None if they are.

    One that is denied counts before all others: nothing of its pair may stay.
    """
    denied = [one for one in outcomes if isinstance(one, SampleRejected) and one.reason in DENIED]
    if denied:
        return denied[0]
    for number, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, SampleRejected):
            if len(outcomes) == 1:
                return outcome
            detail = f"image {number} of {len(outcomes)}: {outcome.detail}"
            return SampleRejected(outcome.reason, detail, outcome.http_status)
    return None


def _clean(pair: Pair) -> Pair:
    """Returns a pair without credentials, should its input have brought any past the read stage."""
    if pair.url is None or ("@" not in pair.url and pair.more_urls is None):
        return pair
    url, *more = (without_credentials(url) for url in pair.urls)
    more_urls = None if pair.more_urls is None else json_text(more)
    return dataclasses.replace(pair, url=url, more_urls=more_urls)
