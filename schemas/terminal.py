"""What reaches a terminal, a page or a log: control characters are shown there, never sent.

Captions, addresses, names of files and what servers answer come from others. An escape sequence in
one of them could clear a screen, change its title or hide what follows.
"""

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment

CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for tab and line break, marks that turn the direction of what follows, and
halves of characters. Source: Unicode 15, categories Cc, Zl, Zp, Cs, and UAX #9, table 1."""

CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]")
"""The same of control characters alone, in UTF-8."""


def shown(text: str) -> str:
    """Returns a text with its control characters written out, as `\\x1b`."""
    return CONTROL.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def shown_bytes(text: bytes) -> bytes:
    """Returns a text in UTF-8 with its control characters written out."""
    return CONTROL_BYTES.sub(lambda found: _bytes_written_out(found[0]), text)


def _bytes_written_out(found: bytes) -> bytes:
    return b"\\x%02x" % found[-1]


class Console(RichConsole):
    """Rich's console, which shows the control characters of what it is given to print."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yields the pieces of what is printed; what moves the cursor is rich's own."""
        for segment in super().render(renderable, options):
            is_plain = segment.control is not None or not CONTROL.search(segment.text)
            yield segment if is_plain else Segment(shown(segment.text), segment.style)

    def print(self, *objects: Any, **settings: Any) -> None:
        """Prints; what is no markup, such as a path with brackets, is printed as it is."""
        try:
            super().print(*objects, **settings)
        except MarkupError:
            super().print(*objects, **{**settings, "markup": False})


class _Output:
    """A standard stream that goes on when its reader is gone: a job is worth more than its words.

    `aligngpt-curate inspect DATA | head` and a log whose writer was ended close it early.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Returns how many characters there were, written or lost."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        """Writes out what waits."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        """Returns whatever else the stream has."""
        return getattr(self._stream, name)


def prepare_output() -> None:
    """Makes standard output and error streams that no reader's end and no character breaks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the start, as by `>&-`
            stream = open(os.devnull, "w")  # noqa: SIM115, PTH123 (it stays open to the end)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
        setattr(sys, name, cast(TextIO, _Output(stream)))
