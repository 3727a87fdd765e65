"""The images of a shard's pairs: asked of servers or read from files, decoded, spooled."""

import asyncio
import dataclasses
import logging
import tempfile
from functools import partial
from pathlib import Path

from yarl import URL

from pipeline.config import FetchConfig
from pipeline.dataset.deny import DenyFiles, read_lists
from pipeline.dataset.input_tars import TarFiles
from pipeline.dataset.progress import ShardProgress
from pipeline.fetch.boxes import boxes_of, with_own_boxes
from pipeline.fetch.decoding.frames import Handling
from pipeline.fetch.decoding.pool import Answer, DecodedImage, decoded
from pipeline.fetch.hosts.slots import Slot
from pipeline.fetch.http.proxy import require_proxy
from pipeline.fetch.http.urls import parse_url
from pipeline.fetch.image_folders import LocalFiles, StoreFiles
from pipeline.fetch.img2dataset.engine import PeerOutcome, download_with_img2dataset
from pipeline.fetch.sharing import SharedTools
from pipeline.fetch.spool import Outcome, Spool, SpooledImage
from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair

logger = logging.getLogger(__name__)

NO_HOST = ""
"""What stands for the host of rows that ask none."""


def images_of(pair: Pair) -> list[Pair]:
    """Returns a pair of one image for each image of a pair; the hash is of the first."""
    if pair.more_urls is None:
        return [] if pair.url is None else [pair]
    first, *more = (dataclasses.replace(pair, url=url, more_urls=None) for url in pair.urls)
    return [first, *(dataclasses.replace(image, expected_hash=None) for image in more)]


class ShardFetcher:
    """Fetches the images of some pairs within an event loop that others are fetched in as well."""

    def __init__(
        self,
        pairs: list[Pair],
        config: FetchConfig,
        spool: Spool,
        progress: ShardProgress,
    ) -> None:
        self._config = config
        images = [with_own_boxes(images_of(pair), config.blur_boxes) for pair in pairs]
        self._rows = [row for row, of_pair in enumerate(images) for _ in of_pair]
        self._images = [image for of_pair in images for image in of_pair]
        self._spool, self._progress = spool, progress
        self._files = LocalFiles(config.allow_folders, config.max_bytes)
        self._stores = StoreFiles(config.allow_folders, config.max_bytes)
        self._tars = TarFiles(config.max_bytes)
        files = DenyFiles(hashes=config.deny_hashes)
        self._denied = read_lists(files) if files else None
        self._urls: dict[int, URL] = {}
        self._peer_outcomes: dict[int, PeerOutcome] = {}
        self._outcomes: list[dict[int, Outcome]] = [{} for _ in pairs]
        self._left = [len(of_pair) for of_pair in images]
        self._kept, self._rejected = self._left.count(0), 0
        # Here, in the shard's own thread, since it would hold up the loop for all others.
        self._origins = [self._origin(number) for number in range(len(self._images))]

    async def run(self, shared: SharedTools) -> list[tuple[Outcome, ...]]:
        """Returns what became of the images of each pair, both in their order."""
        self._shared = shared
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            await self._fetch_all()
            return [tuple(found[image] for image in sorted(found)) for found in self._outcomes]
        finally:
            self._end.cancel()  # what is still at work must write no more
            self._let_go()

    def _let_go(self) -> None:
        """Forgets the rows: the frames of an error that somebody holds hold this object as well."""
        self._images, self._outcomes, self._urls = [], [], {}
        self._rows, self._origins, self._peer_outcomes = [], [], {}

    async def _fetch_all(self) -> None:
        if self._config.proxy is not None and any(map(self._is_asked, self._images)):
            require_proxy(self._config.proxy)
            logger.warning(
                "requests go through the proxy %s: where it leads to for names that do not "
                "resolve here, nobody guards",
                self._config.proxy,
            )
        if self._config.engine == "aligngpt":
            return await self._share_out()
        logger.warning(
            "img2dataset downloads: no robots.txt, no tdmrep.json, no guard of addresses, no "
            "deny-list of redirects, no limit of bytes or of total time"
        )
        with tempfile.TemporaryDirectory(prefix="aligngpt-") as folder:
            numbers = [n for n, image in enumerate(self._images) if self._is_asked(image)]
            images = [self._images[number] for number in numbers]
            asked = [(str(image.url), image.expected_hash) for image in images]
            outcomes = await asyncio.to_thread(
                download_with_img2dataset, asked, self._config, Path(folder)
            )
            self._peer_outcomes = dict(zip(numbers, outcomes, strict=True))
            await self._share_out()

    async def _share_out(self) -> None:
        """Hands the images to who works on all shards, and waits for the last of them."""
        self._missing = len(self._images)
        if self._missing:
            rows = enumerate(self._origins)
            self._shared.add([(origin, partial(self._work, number)) for number, origin in rows])
            await self._end

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

    async def _work(
        self, number: int, slot: Slot | None, is_last_of_host: bool
    ) -> "asyncio.Future[Answer] | None":
        """Fetches an image; returns the answer of a decoder that is still to come, if one is."""
        if self._end.done():
            if slot is not None:
                slot.end()
            return None
        asked = self._images[number]
        try:
            if self._is_asked(asked) and number not in self._peer_outcomes:
                return await self._download(number, slot, is_last_of_host)
            async with self._shared.reads:
                image = await self._read(asked, self._peer_outcomes.get(number))
        except BaseException as error:
            self._settle(number, error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._settle(number, image)
        return None

    def _settle(self, number: int, found: DecodedImage | BaseException) -> None:
        """Takes an image, or why there is none; what is no image's fault ends the shard."""
        if self._end.done():
            return
        try:
            self._take(number, self._outcome(found))
        except BaseException as error:  # noqa: BLE001 - who waits for the shard raises it
            self._end.set_exception(error)

    def _outcome(self, found: DecodedImage | BaseException) -> Outcome:
        """Returns where an image waits in the spool, or why it is rejected.

        Raises what is no image's fault.
        """
        if isinstance(found, SampleRejected):
            return SampleRejected(*found.args)  # without what it holds in memory
        if isinstance(found, BaseException):
            raise found
        try:
            self._refuse_hashes(found.pixel_hash, found.sha256)
        except SampleRejected as rejected:
            return SampleRejected(*rejected.args)
        place = self._spool.add(found.encoded)
        return SpooledImage(place, len(found.encoded), dataclasses.replace(found, encoded=b""))

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
        self._missing -= 1
        if not self._missing:
            self._end.set_result(None)

    async def _download(
        self, number: int, slot: Slot | None, is_last_of_host: bool
    ) -> "asyncio.Future[Answer]":
        """Downloads an image; returns what a decoder will answer, which settles it."""
        pair, downloader = self._images[number], self._shared.downloader
        url = self._urls.pop(number, None) or str(pair.url)
        body = await downloader.download(url, is_last_of_host, slot)
        self._progress.downloaded_bytes += len(body)
        try:
            self._refuse_bytes(body)
            boxes = boxes_of(pair, self._config.blur_boxes)
            answer = self._shared.decoders.begin(body, pair.expected_hash, boxes=boxes)
        except BaseException:
            downloader.release(body)
            raise
        answer.add_done_callback(partial(self._decoded, number, body))
        return answer

    def _decoded(self, number: int, body: bytearray, answer: "asyncio.Future[Answer]") -> None:
        """Settles an image that was downloaded."""
        self._shared.downloader.release(body)
        try:
            found: DecodedImage | BaseException = decoded(answer.result())
        except BaseException as error:  # noqa: BLE001 - told apart where it is taken
            found = error
        self._settle(number, found)

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
            image = await self._shared.decoders.decode(data, None, Handling.FINAL, boxes)
            return dataclasses.replace(
                image,
                original_width=peer.original_width,
                original_height=peer.original_height,
                sha256=peer.sha256,
            )
        if pair.tar_member is not None:
            data = await asyncio.to_thread(self._tars.read, pair.tar_member)
            self._refuse_bytes(data)
            return await self._shared.decoders.decode(
                data, pair.expected_hash, Handling.STORED, boxes
            )
        url = str(pair.url)
        read = self._stores.read if self._stores.holds(url) else self._files.read
        found: bytes | bytearray = await asyncio.to_thread(lambda: read(url))
        self._refuse_bytes(found)
        return await self._shared.decoders.decode(found, pair.expected_hash, boxes=boxes)

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
