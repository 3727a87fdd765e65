"""Who works on a dataset's folder, as its lock says it."""

import json
import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from schemas.errors import ConfigError
from schemas.shards import DatasetLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who works on a folder."""

    host: str
    process: int
    since: str
    """UTC, ISO 8601."""
    token: str
    """Tells two jobs of the same process number apart."""
    seen_unix_seconds: float

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    def to_json(self) -> str:
        """Returns the holder as a lock file says it."""
        return json.dumps(asdict(self))


def this_process() -> Holder:
    """Returns this process as a holder, of a folder that it has from now on."""
    return Holder(
        host=socket.gethostname(),
        process=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
        seen_unix_seconds=time.time(),
    )


def parse_holder(text: str) -> Holder | None:
    """Returns the holder in a lock file; None if it is empty or cut short by a crash."""
    try:
        return Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None


def refusal(layout: DatasetLayout, holder: Holder | None) -> ConfigError:
    """Returns the error that says who works on a folder already, where that is known."""
    who = str(holder) if holder else "a job that has only just started"
    return ConfigError(
        f"another job works on {layout.root} ({who}): wait for it, stop it, or use another --out"
    )


def is_running(process: int) -> bool:
    """Returns whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
