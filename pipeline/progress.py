"""How far the job is: workers leave small files, the terminal adds them up, on every runner."""

import json
import os
import socket
import time
from types import TracebackType

from pipeline.storage import commit_text, is_local
from schemas.errors import Stage
from schemas.shards import DatasetLayout


class ShardProgress:
    """Says how many of a shard's rows a stage has done, at most once in a while.

    The file is also the worker's sign of life: it names the host and the process.
    """

    def __init__(self, layout: DatasetLayout, stage: Stage, shard: int, total: int) -> None:
        self._path = f"{layout.run}/progress/{stage.value}-{shard:05d}.json"
        self._stage, self._shard, self._total = stage, shard, total
        self._pause_seconds = 0.5 if is_local(layout.root) else 10.0
        self._written_at = -1e9
        self._state = "running"
        self._kept = self._rejected = 0

    def update(self, kept: int, rejected: int) -> None:
        """Takes the rows done so far, kept and rejected."""
        self._kept, self._rejected = kept, rejected
        if time.monotonic() - self._written_at >= self._pause_seconds:
            self._write()

    def __enter__(self) -> "ShardProgress":
        """Announces that the work on the shard has begun."""
        self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Announces that the work has ended, well or not."""
        self._state = "done" if kind is None else "failed"
        self._write()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        values = {
            "stage": self._stage.value,
            "shard": self._shard,
            "total": self._total,
            "kept": self._kept,
            "rejected": self._rejected,
            "state": self._state,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "time_unix_seconds": time.time(),
        }
        commit_text(self._path, json.dumps(values))
