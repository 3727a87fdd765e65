"""The words of an answer as they come, whole characters at a time, up to where it is to stop."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "�"
"""What a tokenizer writes for the bytes of a character that has not all of them yet."""


class TextStream:
    """Turns tokens into text that can be shown at once.

    Two things are held back: a character of which bytes are missing, and what may be the beginning
    of a text that ends the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._start = 0  # of the tokens that are decoded together, to know where spaces go
        self._read = 0  # tokens whose text is in `_held` or was given out
        self._held = ""
        self._is_empty = True
        self.is_stopped = False
        """Whether one of the texts that end it was said."""

    def add(self, token: int) -> str:
        """Returns the text that can be shown now that this token is said."""
        self._tokens.append(token)
        before, now = self._decoded(self._read), self._decoded(len(self._tokens))
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return self._give(now[len(before) :])

    def finish(self) -> str:
        """Returns what was held back, once no token follows."""
        if self.is_stopped:
            return ""
        before, now = self._decoded(self._read), self._decoded(len(self._tokens))
        self._read = len(self._tokens)
        said = self._give(now[len(before) :])
        rest, self._held = self._held, ""
        return said + rest

    def _decoded(self, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._tokens[self._start : end], skip_special_tokens=True
        )
        return text

    def _give(self, text: str) -> str:
        if self._is_empty:
            text = text.lstrip()
            self._is_empty = not text
        self._held += text
        found = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            said, self._held = self._held[: min(found)], ""
            return said
        kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        end = len(self._held) - kept
        said, self._held = self._held[:end], self._held[end:]
        return said


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of a text may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
