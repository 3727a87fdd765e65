"""Addresses of host names, remembered."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from aiohttp.abc import ResolveResult

FOUND_SECONDS = 300.0

FAILED_SECONDS = 60.0

MAX_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found of a name."""

    expires_at: float
    """On the monotonic clock."""
    found: list[ResolveResult]
    error: str | None
    """Why there is none."""


class NameCache:
    """Answers that are fresh; the longest known give way to new ones."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    def get(self, name: str) -> Answer | None:
        """Returns what is known of a name, None if it must be asked."""
        answer = self._answers.get(name)
        return None if answer is None or answer.expires_at < time.monotonic() else answer

    def keep(self, name: str, answer: Answer) -> None:
        """Remembers an answer."""
        self._answers.pop(name, None)
        self._answers[name] = answer
        if len(self._answers) > MAX_NAMES:
            self._answers.popitem(last=False)
