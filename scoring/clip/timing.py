"""What the two sides of scoring take: pictures that are made ready, and the model."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class FeedTime:
    """What it took to get images ready for the model, while that was at work."""

    reading_seconds: float = 0.0
    """Until the sources were there, one after another."""
    thread_seconds: list[float] = field(default_factory=list)
    """Of decoding and preprocessing, piece by piece."""
    threads: int = 1

    @property
    def seconds(self) -> float:
        """What the slower of reading and preparing took: they go on at the same time."""
        return max(self.reading_seconds, sum(self.thread_seconds) / self.threads)


@dataclass(slots=True)
class ScoringTime:
    """What the two sides of scoring took, each while it was at work, in seconds."""

    feed: FeedTime = field(default_factory=FeedTime)
    model: float = 0.0
    """Both towers."""


class Stopwatch:
    """Seconds that a device works on what it is given between here and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._is_cuda else None
        self._began = self._now()

    def _now(self) -> Any:
        if self._stream is None:
            return time.perf_counter()
        return self._stream.record_event(torch.cuda.Event(enable_timing=True))

    def stop(self) -> None:
        """Ends the count."""
        self._ended = self._now()

    def seconds(self) -> float:
        """Returns the count, once the device is done."""
        if self._stream is None:
            return float(self._ended - self._began)
        self._ended.synchronize()
        return float(self._began.elapsed_time(self._ended)) / 1000.0
