"""Addresses of host names, remembered."""

import time
from collections import OrderedDict
from dataclasses import dataclass

from aiohttp.abc import ResolveResult

FOUND_SECONDS = 300.0
FAILED_SECONDS = 60.0

MAX_NAMES = 20_000


@dataclass(frozen=True, slots=True)
class Resolution:
    """What was found of a name."""

    expires_at: float
    """On the monotonic clock."""
    found: list[ResolveResult]
    error: str | None
    """Why there is none."""


class NameCache:
    """Resolutions that are fresh; the longest known give way to new ones."""

    def __init__(self) -> None:
        self._resolutions: OrderedDict[str, Resolution] = OrderedDict()

    def get(self, name: str) -> Resolution | None:
        """Returns what is known of a name, None if it must be asked."""
        known = self._resolutions.get(name)
        return None if known is None or known.expires_at < time.monotonic() else known

    def keep(self, name: str, resolution: Resolution) -> None:
        """Remembers a resolution."""
        self._resolutions.pop(name, None)
        self._resolutions[name] = resolution
        if len(self._resolutions) > MAX_NAMES:
            self._resolutions.popitem(last=False)
