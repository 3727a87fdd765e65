"""The fence around a dataset's folder: only workers of the newest attempt write to it.

A worker that was cut off from the network, or stopped and let go on, does not know that its job
has begun anew without it. It looks before each change that it makes.
"""

import os
import sys
import uuid

from schemas.shards import DatasetLayout
from schemas.storage import check_before_changes, commit_text, read_bytes


def raise_fence(layout: DatasetLayout) -> str:
    """Returns the token of a new attempt; workers of those before it write no more."""
    token = uuid.uuid4().hex
    commit_text(_path(layout), token)
    return token


def keep_within_fence(layout: DatasetLayout, token: str) -> None:
    """Makes this process end, before a change to any file, once its attempt is over.

    A store that does not answer fails the change, as it would fail the write itself.
    """

    def look() -> None:
        try:
            newest = read_bytes(_path(layout)).decode()
        except FileNotFoundError:
            newest = ""
        if newest != token:
            sys.stderr.write(f"this worker's attempt at {layout.root} is over: it ends\n")
            sys.stderr.flush()
            os._exit(1)

    check_before_changes(look)


def _path(layout: DatasetLayout) -> str:
    return f"{layout.run}/attempt"
