"""Heads of answers as the web has them: read generously, handed on in plain form.

Servers send policies of 30 KB, lines without a colon, a length twice. curl and browsers pass over
all that; the parser of our HTTP client ends the request, and rightly, since it does not know what
we read of a head. Here that is known: a few fields, which are handed on, and the rest is dropped.
"""

import asyncio
import re
from typing import Any, TypeVar

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage

MAX_HEAD_BYTES = 256 * 1024
"""Longest head of an answer. curl takes 300 KB."""

Data = TypeVar("Data", bytes, memoryview)

END_BYTES = 3
"""Bytes of what ends a head that may have come before its last one."""
END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
STATUS_LINE = re.compile(rb"HTTP/([0-9])(?:\.([0-9]))?[ \t]+([0-9]{3})(?:[ \t\r]|$)", re.IGNORECASE)
NUMBER = re.compile(rb"\+?([0-9]{1,18})")
UNCARRIED = re.compile(rb"[\x00\r\n]")

FIELDS = {
    name.lower(): name
    for name in (
        b"Connection",
        b"Content-Encoding",
        b"Content-Range",
        b"Location",
        b"Retry-After",
        b"TDM-Reservation",
        b"X-Robots-Tag",
    )
}
"""What is read of a head, beside what says where the body ends."""

READ = frozenset({*FIELDS, b"content-length", b"transfer-encoding"})


class PlainHead:
    """The head of one answer as it is handed on, and where its body ends."""

    def __init__(self, head: bytes) -> None:
        """Reads a head up to its empty line.

        Raises:
            BadHttpMessage: if it says nothing that can be followed.
        """
        lines = _unfolded(head.lstrip(b"\r\n"))
        found = STATUS_LINE.match(lines[0])
        if found is None:
            raise BadHttpMessage(f"no status line: {lines[0][:80]!r}")
        self.is_interim = found[3][:1] == b"1" and found[3] != b"101"
        self.body_bytes: int | None = None
        """Length of the body, None if it is not said in the head."""
        version = b"1.0" if found[1] + (found[2] or b"") == b"10" else b"1.1"
        self._lines = [b"HTTP/%s %s -" % (version, found[3])]
        self._read(lines[1:], has_body=found[3] not in (b"204", b"304"))

    @property
    def plain(self) -> bytes:
        """The head as bytes, its empty line with it."""
        return b"\r\n".join([*self._lines, b"", b""])

    def _read(self, lines: list[bytes], has_body: bool) -> None:
        lengths, codings = [], []
        for line in lines:
            name, _, text = line.partition(b":")
            name = name.strip().lower()
            if name not in READ:  # most of them
                continue
            value = UNCARRIED.sub(b" ", text).strip()
            if name == b"content-length":
                lengths += [part.strip() for part in value.split(b",") if part.strip()]
            elif name == b"transfer-encoding":
                codings += [part.strip().lower() for part in value.split(b",")]
            else:
                self._lines.append(b"%s: %s" % (FIELDS[name], value))
        codings = [coding for coding in codings if coding not in (b"", b"identity")]
        if codings:
            if set(codings) != {b"chunked"}:
                raise BadHttpMessage(f"Transfer-Encoding {b', '.join(codings)[:60]!r}")
            self._lines.append(b"Transfer-Encoding: chunked")
            if lengths:
                self._lines.append(b"Connection: close")
        elif lengths:
            self._lines.append(b"Content-Length: %d" % _length(lengths))
            self.body_bytes = _length(lengths) if has_body else 0


def _unfolded(head: bytes) -> list[bytes]:
    """Returns the lines of a head, those that go on in the next one put together."""
    if b"\n " not in head and b"\n\t" not in head:
        return [line.rstrip(b"\r") for line in head.split(b"\n")]
    lines: list[bytes] = []
    for line in head.split(b"\n"):
        if line[:1] in (b" ", b"\t") and len(lines) > 1:
            lines[-1] += b" " + line.strip()
        else:
            lines.append(line.rstrip(b"\r"))
    return lines


def _length(lengths: list[bytes]) -> int:
    """Returns the length that all say.

    Raises:
        BadHttpMessage: if they differ, or one is no number.
    """
    found = {int(match[1]) if (match := NUMBER.fullmatch(text)) else None for text in lengths}
    length = found.pop()
    if found or length is None:
        raise BadHttpMessage(f"Content-Length {b', '.join(lengths)[:60]!r}")
    return length


class GenerousHandler(ResponseHandler):
    """aiohttp's protocol of a connection, which gets to see plain heads and no surplus bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head: bytearray | None = None
        """What has come of a head; None while none is expected."""
        self._left: int | None = None
        """Bytes of the body that are still to come, None if nobody knows."""

    def set_response_params(self, **params: Any) -> None:
        """Expects the head of the next answer."""
        self._head, self._left = bytearray(), None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Passes on what has come: a head once it is whole, then its body."""
        if self._head is not None and self._parser is not None and data:
            data = self._read_head(self._head, data)
            if not data:
                return
        elif self._left is not None and data:
            data = self._of_body(data)
            if not data:
                return
        super().data_received(data)

    def _read_head(self, head: bytearray, data: bytes) -> bytes:
        """Returns a head in plain form with what follows it, nothing while it is not whole."""
        place, seen = 0, max(0, len(head) - END_BYTES)
        if head:
            head += data
        whole = head or data  # mostly a head comes in one piece, with all or much of its body
        try:
            while (found := END_OF_HEAD.search(whole, seen)) is not None:
                text = bytes(whole[place : found.start()])
                # There may be line ends before the status line.
                read = PlainHead(text) if text.strip(b"\r\n") else None
                place = seen = found.end()
                if read is not None and not read.is_interim:
                    self._head, self._left = None, read.body_bytes
                    return b"".join((read.plain, self._of_body(memoryview(whole)[place:])))
            if len(whole) - place > MAX_HEAD_BYTES:
                raise BadHttpMessage(f"a head of more than {MAX_HEAD_BYTES} bytes")
        except BadHttpMessage as error:
            self._give_up(error)  # what cannot be read stays before whatever may follow
        if head:
            del head[:place]
        else:
            head += data[place:]
        return b""

    def _of_body(self, data: Data) -> Data:
        """Returns what belongs to the body; a connection on which more comes is not used again."""
        if self._left is None:
            return data
        if len(data) > self._left:
            data = data[: self._left]
            self.force_close()
            if not data and self.transport is not None:
                self.transport.close()
        self._left -= len(data)
        return data

    def _give_up(self, error: BadHttpMessage) -> None:
        if self.transport is not None:
            self.transport.close()
        self.set_exception(error)


class KeptWordRequest(aiohttp.ClientRequest):
    """A request after which a connection that it asks to be closed is not used again.

    aiohttp 3.14 closes it only where the answer says so, too; a server need not, and a request that
    follows on it is lost (RFC 9112, section 9.6).
    """

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Returns the answer, its head not yet read."""
        if self.headers.get("Connection") == "close" and conn.protocol is not None:
            conn.protocol.force_close()
        return await super().send(conn)
