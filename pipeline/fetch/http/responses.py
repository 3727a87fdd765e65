"""What a server's answer means: where it leads, what it holds, why it failed."""

import ssl
import zlib

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from schemas.errors import RejectReason, SampleRejected

PASSING_STATUS = frozenset({408, 425, 500, 502, 503, 504})
"""Answers after which the same request may succeed later."""


PACKINGS = frozenset({"gzip", "x-gzip", "deflate"})

NO_PACKINGS = frozenset({"", "identity", "none", "binary", "utf-8", "utf8", "aws-chunked"})
"""What stands in Content-Encoding and packs nothing."""

IMAGE_STARTS = frozenset(b"\xff\x89GRBIM\0")
"""First bytes of the image formats that are taken."""

GZIP_START = 0x1F
ZLIB_METHOD = 0x08
"""Lower half of the first byte of deflated data; no image format and no text begins so."""


class Unpacker:
    """Undoes a Content-Encoding, never producing more than is wanted.

    Servers say gzip of what is not packed: what begins as an image is one.
    """

    def __init__(self, encoding: str, is_image: bool) -> None:
        names = [name.strip().lower() for name in encoding.split(",")]
        packings = [name for name in names if name not in NO_PACKINGS]
        self._inflate = None
        self._is_begun = False
        # An image that is called packed twice was packed once, by each of two programs in a row.
        if set(packings) <= PACKINGS and (len(packings) == 1 or (packings and is_image)):
            self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        elif packings and not is_image:
            raise _unwanted(packings)
        self._unknown = packings if self._inflate is None else []

    @property
    def is_complete(self) -> bool:
        """Whether what was packed has come to its end."""
        return self._inflate is None or self._inflate.eof

    @property
    def has_ended(self) -> bool:
        """Whether what was packed says of itself that nothing follows."""
        return self._inflate is not None and self._inflate.eof

    @property
    def trailing_bytes(self) -> int:
        """Number of bytes that came behind that end."""
        return len(self._inflate.unused_data) if self._inflate is not None else 0

    def __call__(self, chunk: bytes, wanted: int) -> bytes:
        """Returns up to `wanted` bytes out of a chunk of the body."""
        if not self._is_begun and chunk:
            self._begin(chunk)
        if self._inflate is None:
            return chunk
        try:
            return self._inflate.decompress(chunk, max(wanted, 1))
        except zlib.error as error:
            raise SampleRejected(RejectReason.BAD_RESPONSE, f"gzip: {error}") from error

    def _begin(self, chunk: bytes) -> None:
        """Judges by its first byte whether the body is what it is said to be.

        Raises:
            SampleRejected: BAD_RESPONSE, if it is packed in a way that was not asked for.
        """
        self._is_begun = True
        if self._inflate is not None and chunk[0] != GZIP_START and chunk[0] & 0x0F != ZLIB_METHOD:
            self._inflate = None
        if self._unknown and chunk[0] not in IMAGE_STARTS:
            raise _unwanted(self._unknown)


def _unwanted(encodings: list[str]) -> SampleRejected:
    detail = f"Content-Encoding {', '.join(encodings)[:30]!r} was not asked for"
    return SampleRejected(RejectReason.BAD_RESPONSE, detail)


def too_many(max_bytes: int) -> SampleRejected:
    """Returns the rejection of a body that is too large."""
    return SampleRejected(RejectReason.TOO_MANY_BYTES, f"more than {max_bytes} bytes")


def failure(error: Exception) -> SampleRejected:
    """Returns what a client's error means for the sample."""
    detail = _detail(error)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        is_passing = error.status >= 500
        reason = RejectReason.SERVER_ERROR if is_passing else RejectReason.HTTP_STATUS
        return SampleRejected(reason, f"the proxy answers {error.status}", error.status)
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return SampleRejected(RejectReason.CONNECT_FAILED, detail)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return SampleRejected(RejectReason.DNS_FAILED, detail)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return SampleRejected(RejectReason.TLS_FAILED, detail)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return SampleRejected(RejectReason.INCOMPLETE_RESPONSE, detail)
    if isinstance(error, aiohttp.ClientPayloadError):
        cause = error.__cause__
        is_cut = cause is None or isinstance(cause, OSError) or "Not enough data" in str(cause)
        reason = RejectReason.INCOMPLETE_RESPONSE if is_cut else RejectReason.BAD_RESPONSE
        return SampleRejected(reason, detail)
    if isinstance(error, aiohttp.ClientResponseError | HttpProcessingError):
        return SampleRejected(RejectReason.BAD_RESPONSE, detail)
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return SampleRejected(RejectReason.INVALID_URL, detail)
    if isinstance(error, OSError):
        return SampleRejected(RejectReason.CONNECT_FAILED, detail)
    return SampleRejected(RejectReason.BAD_RESPONSE, detail)


def _detail(error: Exception) -> str:
    """Returns what happened, the same text each time (aiohttp's names an object's address)."""
    cause: BaseException = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
    return f"{type(error).__name__}: {cause}"[:200]
