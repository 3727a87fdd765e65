"""A shard of pairs is fetched: its images, tarred in the order of their keys."""

import asyncio
import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.dataset.commits import deciding_settings, stage_fingerprint
from pipeline.dataset.credentials import without_credentials
from pipeline.dataset.deny import DENIED, DenyFiles, read_lists
from pipeline.dataset.input_tars import TarFiles
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.rejections import count_reasons, rejection, write_rejections
from pipeline.dataset.worktimes import timed
from pipeline.fetch.boxes import boxes_of, with_own_boxes
from pipeline.fetch.decoding.pool import DecodedImage, DecoderPool
from pipeline.fetch.decoding.process import Handling
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.slots import HostQueues, HostSlots, Slot
from pipeline.fetch.http.download import Downloader
from pipeline.fetch.http.proxy import require_proxy
from pipeline.fetch.http.urls import parse_url
from pipeline.fetch.image_folders import LocalFiles, StoreFiles
from pipeline.fetch.img2dataset.engine import PeerOutcome, download_with_img2dataset
from pipeline.fetch.process_settings import connections_allowed, rare_garbage_collection
from pipeline.fetch.spool import (
    KeptPair,
    Outcome,
    SpooledImage,
    read_spool,
    shard_stats,
    write_samples,
)
from schemas.columns import kept_fields, read_table, records_from_table
from schemas.errors import DatasetError, RejectReason, SampleRejected
from schemas.records import PAIR_SCHEMA, Pair, Rejection, json_text
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import (
    commit_text,
    committed_fingerprint,
    exists,
    open_read,
    read_json,
    remove,
)

logger = logging.getLogger(__name__)

NOT_DECIDING = (
    "connections",
    "connections_per_host",
    "requests_per_second_per_host",
    "max_buffered_bytes",
    "decode_processes",
    "deny_hashes",
    "proxy",
)
"""Settings of `FetchConfig` that change how fast a shard is fetched, not what comes of it."""

SPOOL_MEMORY_BYTES = 64 * 1024 * 1024
"""What of the finished images waits in memory; more waits in a temporary file."""

READS_AT_ONCE = 32
"""Images from files and tars that are in memory at once, not being bound by a host's limits."""

NO_HOST = ""
"""What stands for the host of rows that ask none."""


def fetch_shard(
    layout: DatasetLayout, shard: int, config: FetchConfig, memory: HostMemory | None = None
) -> None:
    """Fetches the images of a shard of pairs, unless that is done already.

    Args:
        memory: what is known of hosts from earlier shards.

    Raises:
        DatasetError: if the shard's pairs are not there.
    """
    fingerprint = fetch_fingerprint(layout, shard, config)
    marker = layout.fetched(shard, "_stats.json")
    if asked_fingerprint(marker) == fingerprint:
        return
    remove(marker)
    with timed(layout, Stage.FETCH, "fetch") as work:
        started_at = time.time()
        pairs = read_pairs(layout, shard)
        with (
            ShardProgress(layout, Stage.FETCH, shard, len(pairs)) as progress,
            tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES) as spool,
        ):
            kept, rejections = fetch_pairs(pairs, config, memory, spool, progress)
            samples = read_spool(kept, spool, config.image_format)
            tar, table = layout.fetched(shard, "tar"), layout.fetched(shard, "parquet")
            write_samples(samples, tar, table, fingerprint, read_kept_fields(layout, shard))
            write_rejections(layout, Stage.FETCH, shard, rejections, fingerprint)
        stats = shard_stats(count_reasons(rejections), len(kept), started_at)
        commit_text(marker, json.dumps({**stats, "fingerprint": fingerprint}, indent=2) + "\n")
        work.rows, work.bytes = len(pairs), progress.downloaded_bytes


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
    if not exists(marker):
        return None
    values = read_json(marker)
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
    memory: HostMemory | None,
    spool: IO[bytes],
    progress: ShardProgress,
) -> tuple[list[KeptPair], list[Rejection]]:
    """Returns the pairs that are kept, their images in the spool, and the rejections of the others.

    Both stand in the order of the pairs. Of several images, the first that fails is the reason.
    """
    fetcher = ShardFetcher(pairs, config, memory or HostMemory(config), spool, progress)
    kept: list[KeptPair] = []
    rejections: list[Rejection] = []
    with rare_garbage_collection():
        found = asyncio.run(fetcher.run())
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
    if pair.url is None:
        return pair
    url, *more = (without_credentials(url) for url in pair.urls)
    more_urls = None if pair.more_urls is None else json_text(more)
    return dataclasses.replace(pair, url=url, more_urls=more_urls)


def images_of(pair: Pair) -> list[Pair]:
    """Returns a pair of one image for each image of a pair; the hash is of the first."""
    if pair.more_urls is None:
        return [] if pair.url is None else [pair]
    first, *more = (dataclasses.replace(pair, url=url, more_urls=None) for url in pair.urls)
    return [first, *(dataclasses.replace(image, expected_hash=None) for image in more)]


class ShardFetcher:
    """Fetches the images of some pairs within one event loop."""

    def __init__(
        self,
        pairs: list[Pair],
        config: FetchConfig,
        memory: HostMemory,
        spool: IO[bytes],
        progress: ShardProgress,
    ) -> None:
        self._config, self._memory = config, memory
        images = [with_own_boxes(images_of(pair), config.blur_boxes) for pair in pairs]
        self._rows = [row for row, of_pair in enumerate(images) for _ in of_pair]
        self._images = [image for of_pair in images for image in of_pair]
        self._spool, self._progress = spool, progress
        self._files = LocalFiles(config.allow_folders, config.max_bytes)
        self._stores = StoreFiles(config.allow_folders, config.max_bytes)
        self._tars = TarFiles(config.max_bytes)
        files = DenyFiles(hashes=config.deny_hashes)
        self._denied = read_lists(files) if files else None
        self._peer_outcomes: dict[int, PeerOutcome] = {}
        self._outcomes: list[dict[int, Outcome]] = [{} for _ in pairs]
        self._left = [len(of_pair) for of_pair in images]
        self._kept, self._rejected = self._left.count(0), 0

    async def run(self) -> list[tuple[Outcome, ...]]:
        """Returns what became of the images of each pair, both in their order."""
        await self._fetch_all()
        return [tuple(found[image] for image in sorted(found)) for found in self._outcomes]

    async def _fetch_all(self) -> None:
        if self._config.proxy is not None and any(map(self._is_asked, self._images)):
            require_proxy(self._config.proxy)
            logger.warning(
                "requests go through the proxy %s: where it leads to for names that do not "
                "resolve here, nobody guards",
                self._config.proxy,
            )
        if self._config.engine == "aligngpt":
            return await self._run()
        logger.warning(
            "img2dataset downloads: no robots.txt, no tdmrep.json, no guard of addresses, no limit "
            "of bytes or of total time"
        )
        with tempfile.TemporaryDirectory(prefix="aligngpt-") as folder:
            numbers = [n for n, image in enumerate(self._images) if self._is_asked(image)]
            images = [self._images[number] for number in numbers]
            asked = [(str(image.url), image.expected_hash) for image in images]
            outcomes = await asyncio.to_thread(
                download_with_img2dataset, asked, self._config, Path(folder)
            )
            self._peer_outcomes = dict(zip(numbers, outcomes, strict=True))
            await self._run()

    async def _run(self) -> None:
        self._urls: dict[int, URL] = {}
        asked = [(self._origin(number), number) for number in range(len(self._images))]
        slots = HostSlots(self._memory, self._config)
        self._queues = HostQueues(asked, slots)
        self._reads = asyncio.Semaphore(READS_AT_ONCE)
        self._downloader = Downloader(self._config, self._memory, slots=slots)
        self._decoders = DecoderPool(
            self._config.images, self._config.decode_processes, self._config.decode_timeout_seconds
        )
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(connections_allowed(min(self._config.connections, len(asked)))):
                    group.create_task(self._work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        finally:
            await self._downloader.close()
            await self._decoders.close()

    def _origin(self, number: int) -> str:
        """Returns the host that an image is at; its URL is kept until it has a slot."""
        image = self._images[number]
        if not self._is_asked(image) or self._config.engine != "aligngpt":
            return NO_HOST
        try:
            url = parse_url(str(image.url))
            origin = str(url.origin())
        except (SampleRejected, ValueError):
            return NO_HOST
        self._urls[number] = url
        return origin

    async def _work(self) -> None:
        """Takes images until there are none left."""
        while (taken := await self._queues.take()) is not None:
            slot, number, is_last_of_host = taken
            try:
                outcome: Outcome = await self._fetch(number, slot, is_last_of_host)
            except SampleRejected as rejected:
                outcome = SampleRejected(*rejected.args)  # without what it holds in memory
            self._take(number, outcome)

    def _take(self, number: int, outcome: Outcome) -> None:
        """Notes what became of an image, and counts its pair if it was the last one of it."""
        row = self._rows[number]
        self._outcomes[row][number] = outcome
        self._left[row] -= 1
        if self._left[row] == 0:
            outcomes = self._outcomes[row].values()
            has_failed = any(isinstance(outcome, SampleRejected) for outcome in outcomes)
            self._rejected += has_failed
            self._kept += not has_failed
        self._progress.update(self._kept, self._rejected)

    async def _fetch(self, number: int, slot: Slot | None, is_last_of_host: bool) -> SpooledImage:
        """Returns where an image waits in the spool."""
        asked = self._images[number]
        if self._is_asked(asked) and number not in self._peer_outcomes:
            url = self._urls.pop(number, None) or str(asked.url)
            image = await self._download(asked, url, slot, is_last_of_host)
        else:
            async with self._reads:
                image = await self._read(asked, self._peer_outcomes.get(number))
        self._refuse_hashes(image.pixel_hash, image.sha256)
        offset = self._spool.seek(0, 2)
        self._spool.write(image.encoded)
        return SpooledImage(offset, len(image.encoded), dataclasses.replace(image, encoded=b""))

    async def _download(
        self, pair: Pair, url: URL | str, slot: Slot | None, is_last_of_host: bool
    ) -> DecodedImage:
        body = await self._downloader.download(url, is_last_of_host, slot)
        self._progress.downloaded_bytes += len(body)
        try:
            self._refuse_bytes(body)
            boxes = boxes_of(pair, self._config.blur_boxes)
            return await self._decoders.decode(body, pair.expected_hash, boxes=boxes)
        finally:
            self._downloader.release(body)

    async def _read(self, pair: Pair, peer: PeerOutcome | None) -> DecodedImage:
        """Returns an image that img2dataset, an input tar or an allowed folder holds.

        Args:
            peer: what img2dataset made of it, if it was asked.
        """
        boxes = boxes_of(pair, self._config.blur_boxes)
        if isinstance(peer, SampleRejected):
            raise peer
        if peer is not None:
            data = await asyncio.to_thread(self._tars.read, peer.place)
            image = await self._decoders.decode(data, None, Handling.FINAL, boxes)
            return dataclasses.replace(
                image,
                original_width=peer.original_width,
                original_height=peer.original_height,
                sha256=peer.sha256,
            )
        if pair.tar_member is not None:
            data = await asyncio.to_thread(self._tars.read, pair.tar_member)
            self._refuse_bytes(data)
            return await self._decoders.decode(data, pair.expected_hash, Handling.STORED, boxes)
        url = str(pair.url)
        read = self._stores.read if self._stores.holds(url) else self._files.read
        found: bytes | bytearray = await asyncio.to_thread(lambda: read(url))
        self._refuse_bytes(found)
        return await self._decoders.decode(found, pair.expected_hash, boxes=boxes)

    def _refuse_bytes(self, data: bytes | bytearray | memoryview) -> None:
        """Raises `SampleRejected` for a file that a deny-list names, before anything decodes it."""
        if self._denied is not None and self._denied.denies_bytes(data):
            raise SampleRejected(RejectReason.DENIED_HASH, "its file is on a deny-list")

    def _refuse_hashes(self, *hashes: str | None) -> None:
        """Raises `SampleRejected` for a picture that a deny-list names by a hash of ours."""
        if self._denied is not None and any(map(self._denied.denies_hash, hashes)):
            raise SampleRejected(RejectReason.DENIED_HASH, "its picture is on a deny-list")

    def _is_asked(self, image: Pair) -> bool:
        """Returns whether an image is asked of a server; otherwise a file holds it."""
        url = str(image.url)
        return image.tar_member is None and is_remote(url) and not self._stores.holds(url)


def is_remote(url: str) -> bool:
    """Returns whether an address leads to a server; otherwise it is a file's path."""
    return "://" in url and not url.lower().startswith("file://")
