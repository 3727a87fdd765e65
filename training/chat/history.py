"""What was typed before, over the sessions of one user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MAX_LINES = 1000
"""Lines that are kept."""


def history_file() -> Path:
    """Returns where lines are kept. Source: the XDG base directory specification, state files."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if Path(state).is_absolute() else Path.home() / ".local" / "state"
    return base / "aligngpt" / "chat_history"


@contextmanager
def kept_history() -> Iterator[None]:
    """Lets the arrow keys bring back what was typed, also in earlier sessions, where that can be.

    A Python without readline, a home that cannot be read or written: then there is none.
    """
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_file()
    readline.set_history_length(MAX_LINES)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            readline.write_history_file(path)
