"""One HTTP request: guarded, within its limits of bytes, judged by its headers."""

import asyncio
import functools
import ipaddress
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pipeline.config import FetchConfig
from pipeline.dataset.deny import DenyLists
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.hosts.robots import check_headers, retry_after_seconds
from pipeline.fetch.http.budgets import ByteBudget, paused
from pipeline.fetch.http.heads import MAX_HEAD_BYTES, GenerousHandler, KeptWordRequest
from pipeline.fetch.http.proxy import not_let_in, proxy_url
from pipeline.fetch.http.resolver import CachedResolver
from pipeline.fetch.http.responses import PASSING_STATUS, Unpacker, failure, too_many
from pipeline.fetch.http.urls import redirected
from schemas.addresses import AddressGuard
from schemas.errors import RejectReason, SampleRejected
from scoring.images.sniff import SNIFFED_BYTES, require_image

MAX_RULES_BYTES = 500 * 1024
"""Bytes of robots.txt that are read. Source: RFC 9309, section 2.5."""

FAILURES = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""What the client raises when a request fails."""

CHUNK_BYTES = 64 * 1024
MAX_HEAD_FIELDS = 4096
"""Fields of a plain head, which is bounded by its bytes."""

MAX_ROOM_SECONDS = 300.0
"""How long an answer may wait in all until decoders have made room for its bytes."""

PROXY_REFUSES = 407

LOOKUP_SECONDS = 2.0
"""How long a name is looked up whose address a proxy will look up as well."""

GOOD_STATUS = frozenset({200, 201, 202, 203, *range(207, 300)})
"""Answers with a body that may be the image: those of 2xx but for no, other and partial content."""

WHOLE_RANGE = re.compile(r"bytes\s+0-([0-9]{1,18})/([0-9]{1,18})", re.ASCII | re.IGNORECASE)

REDIRECTS = frozenset({301, 302, 303, 307, 308})

PAUSING_STATUS = frozenset({429, 503})
"""Answers by which a host asks to be left alone."""


@dataclass(slots=True)
class Response:
    """What one request brought: a body, or where to go on."""

    body: bytearray
    location: str | None = None


class HttpClient:
    """Asks for images and for texts within one event loop; close it when done."""

    def __init__(
        self,
        config: FetchConfig,
        memory: HostMemory,
        resolver: AbstractResolver | None,
        denied: DenyLists | None = None,
    ) -> None:
        self._config, self._memory, self._denied = config, memory, denied
        self._guard = AddressGuard(config.allow_networks, config.allow_ports)
        self._budget = ByteBudget(config.max_buffered_bytes)
        self._resolver = resolver or CachedResolver(memory.names)
        connector = aiohttp.TCPConnector(
            limit=0,
            resolver=self._resolver,
            use_dns_cache=False,
            # All that is connected to is the proxy where there is one: `_judge` looks further.
            socket_factory=self._guard.open_socket if config.proxy is None else None,
            happy_eyeballs_delay=None,
            ssl=tls_context(config.ca_file),
            keepalive_timeout=10.0,
        )
        # aiohttp has no setting for the protocol of a connection.
        factory = functools.partial(GenerousHandler, asyncio.get_running_loop())
        connector._factory = cast("functools.partial[ResponseHandler]", factory)
        contact = f" (+{config.contact})" if config.contact else ""
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=KeptWordRequest,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_seconds),
            headers={
                "User-Agent": config.user_agent + contact,
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,
            trust_env=False,
            proxy=proxy_url(config.proxy) if config.proxy is not None else None,
            read_bufsize=2 * CHUNK_BYTES,
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEAD_FIELDS,
        )

    async def close(self) -> None:
        """Closes all connections."""
        await self._session.close()

    def check_url(self, url: URL) -> None:
        """Raises `SampleRejected` unless the URL may be asked."""
        self._guard.check_url(url)

    def release(self, body: bytearray) -> None:
        """Takes note that the body of an answer is no longer held in memory."""
        self._budget.release(len(body))

    async def follow(self, url: URL, ask: Callable[[URL, int], Awaitable[Response]]) -> bytearray:
        """Returns the body behind a URL and its redirects; `release` it once it is done with.

        Args:
            ask: makes one request, for a URL behind so many redirects.

        Raises:
            SampleRejected: whatever is in the way; BAD_REDIRECT, if there are too many;
                DENIED_REDIRECT, if one leads to what a deny-list names, which is not asked.
        """
        for hop in range(self._config.max_redirects + 1):
            self.check_url(url)
            response = await ask(url, hop)
            if response.location is None:
                return response.body
            url = redirected(url, response.location)
            self._refuse_denied(url)
        detail = f"more than {self._config.max_redirects} redirects"
        raise SampleRejected(RejectReason.BAD_REDIRECT, detail)

    def _refuse_denied(self, url: URL) -> None:
        """Raises `SampleRejected` for an address on a deny-list; the message does not repeat it."""
        if self._denied is not None and self._denied.reason_of_urls([str(url)]) is not None:
            detail = "it leads to an address on a deny-list"
            raise SampleRejected(RejectReason.DENIED_REDIRECT, detail)

    async def ask_image(
        self, url: URL, origin: str, is_last: bool, deadline: asyncio.Timeout
    ) -> Response:
        """Returns the answer to a request for an image.

        Args:
            origin: of the URL.
            is_last: whether the connection need not be kept for more.
            deadline: of the caller, moved by waits for room in memory.

        Raises:
            SampleRejected: whatever is in the way.
        """
        limit = self._config.max_bytes
        return await self._ask(url, origin, limit, deadline, is_last, is_image=True)

    async def ask_text(self, url: URL, deadline: asyncio.Timeout) -> Response:
        """Returns the answer to a request for a small text, under the same guards.

        A long one is cut after `MAX_RULES_BYTES`.

        Raises:
            SampleRejected: whatever is in the way.
        """
        origin, limit = str(url.origin()), MAX_RULES_BYTES
        return await self._ask(url, origin, limit, deadline, is_last=False, is_image=False)

    async def _ask(
        self,
        url: URL,
        origin: str,
        max_bytes: int,
        deadline: asyncio.Timeout,
        is_last: bool,
        is_image: bool,
    ) -> Response:
        """Returns the answer to one request."""
        headers = {"Connection": "close"} if is_last else None
        body = bytearray()
        try:
            if self._config.proxy is not None:
                await self._judge(str(url.raw_host))
            async with self._session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status == PROXY_REFUSES and self._config.proxy is not None:
                    raise not_let_in(self._config.proxy)
                self._heed_pause(origin, response)
                if is_image:
                    self._check_opt_out(url, response)
                if response.status in REDIRECTS:
                    return Response(body, response.headers.get("Location", ""))
                _check_status(response)
                if is_image and (response.content_length or 0) > max_bytes:
                    raise too_many(max_bytes)
                try:
                    body = await self._read(response, max_bytes, deadline, is_image)
                except BaseException:  # cancelled, too: what is held is given back
                    response.close()
                    raise
            return Response(body)
        except BaseException as error:  # cancelled, too: what is held is given back
            self._budget.release(len(body))
            if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == PROXY_REFUSES:
                raise not_let_in(str(self._config.proxy)) from error
            if isinstance(error, FAILURES) and not isinstance(error, TimeoutError):
                raise failure(error) from error
            raise

    async def _judge(self, host: str) -> None:
        """Raises `SampleRejected` if a host that a proxy will ask is known to be forbidden.

        The proxy looks names up itself. One that does not resolve here is left to it.
        """
        try:
            ipaddress.ip_address(host)
        except ValueError:
            try:
                async with asyncio.timeout(LOOKUP_SECONDS):
                    found = [one["host"] for one in await self._resolver.resolve(host)]
            except OSError:  # a look-up that takes too long among them
                return
        else:
            found = [host]
        for address in found:
            self._guard.check_address(address)

    def _heed_pause(self, origin: str, response: aiohttp.ClientResponse) -> None:
        """Takes note whether the host wants to be left alone for a while."""
        if response.status not in PAUSING_STATUS:
            self._memory.accepted(origin)
            return
        wait = retry_after_seconds(response.headers.get("Retry-After"))
        if wait is None:
            self._memory.refused(origin)
        else:
            self._memory.pause(origin, wait)

    def _check_opt_out(self, url: URL, response: aiohttp.ClientResponse) -> None:
        """Raises `SampleRejected` if the page opts out, whatever else its answer says."""
        tags = response.headers.getall("X-Robots-Tag", [])
        try:
            check_headers(response.headers, tags, self._config)
        except SampleRejected as rejected:
            self._memory.keep_opt_out(str(url), rejected)
            raise

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        max_bytes: int,
        deadline: asyncio.Timeout,
        is_image: bool,
    ) -> bytearray:
        """Returns the body, decompressed, held in the budget; of a text its first bytes.

        What comes over the line counts as well: packed data can go on without giving a byte.
        """
        encodings = response.headers.getall("Content-Encoding", [])
        unpack = Unpacker(",".join(encodings), is_image)
        stream, body = response.content, bytearray()
        raw_bytes, patience = 0, MAX_ROOM_SECONDS
        is_sniffed, is_cut = not is_image, False
        try:
            while chunk := await _next_chunk(stream):
                if unpack.has_ended:
                    break  # what follows is not of the image; the connection is given up
                piece = unpack(chunk, max_bytes + 1 - len(body))
                raw_bytes += len(chunk) - unpack.trailing_bytes
                if not is_image:
                    piece = piece[: max_bytes - len(body)]
                patience -= await self._grow(len(piece), id(body), deadline, patience)
                body += piece
                if not is_sniffed and len(body) >= SNIFFED_BYTES:
                    require_image(bytes(body[:SNIFFED_BYTES]))
                    is_sniffed = True
                is_cut = not is_image and max(raw_bytes, len(body)) >= max_bytes
                if is_cut:
                    break
                if max(raw_bytes, len(body)) > max_bytes:
                    raise too_many(max_bytes)
            if not is_sniffed:
                require_image(bytes(body))
            if not (is_cut or unpack.is_complete):
                raise SampleRejected(RejectReason.INCOMPLETE_RESPONSE, "packed data ends early")
        except BaseException:  # cancelled, too: what is held is given back
            self._budget.abandon(len(body), id(body))
            raise
        self._budget.finish(len(body), id(body))
        return body

    async def _grow(
        self, amount: int, holder: int, deadline: asyncio.Timeout, patience_seconds: float
    ) -> float:
        """Returns the seconds until there was room for more bytes, which cost an image no time.

        Raises:
            SampleRejected: RATE_LIMITED, if our decoders are too slow; no host is to blame.
        """
        if self._budget.took(amount):
            return 0.0
        before = time.monotonic()
        try:
            with paused(deadline):
                async with asyncio.timeout(patience_seconds):
                    await self._budget.grow(amount, holder)
        except TimeoutError:
            detail = f"no room in memory within {MAX_ROOM_SECONDS:g} s: the decoders are slow"
            raise SampleRejected(RejectReason.RATE_LIMITED, detail) from None
        return time.monotonic() - before


async def _next_chunk(stream: aiohttp.StreamReader) -> bytes:
    """Returns what has come of a body, nothing at its end."""
    if stream.is_eof():  # a small body comes with its head, and need not be waited for
        return stream.read_nowait()
    return await stream.readany()


def _check_status(response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status in GOOD_STATUS or (status == 206 and _is_whole(response)):
        return
    detail = f"HTTP {status}"
    wait = retry_after_seconds(response.headers.get("Retry-After"))
    if status in PAUSING_STATUS and wait is not None:
        detail += f", asked to wait {wait:.0f} s"
    if status == 429:
        raise SampleRejected(RejectReason.RATE_LIMITED, detail, status)
    if status in PASSING_STATUS or status >= 500:
        raise SampleRejected(RejectReason.SERVER_ERROR, detail, status)
    raise SampleRejected(RejectReason.HTTP_STATUS, detail, status)


def _is_whole(response: aiohttp.ClientResponse) -> bool:
    """Returns whether an answer that calls itself partial brings everything all the same."""
    found = WHOLE_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    return found is not None and int(found[1]) + 1 == int(found[2])


@functools.cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Returns the TLS settings of this process: made once, since it is slow."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    return context
