"""What stands in a folder of this machine, of a million files too.

fsspec asks for ten properties of each file: of a million that takes minutes and a gigabyte.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def local_files(folder: str, stem: str, suffix: str) -> list[str]:
    """Returns the visible names straight below a folder, sorted, as paths; [] if it is none.

    Args:
        stem: what the paths begin with.
        suffix: what they end with.
    """
    with _entries(folder) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(suffix)]
    return sorted(f"{stem}/{name}" for name in names if not name.startswith("."))


def local_sizes(folder: str, stem: str) -> dict[str, int]:
    """Returns path to size, in bytes, of what is visible straight below a folder.

    Args:
        stem: what the paths begin with.
    """
    with _entries(folder) as entries:
        return {
            f"{stem}/{entry.name}": _size_of(entry)
            for entry in entries
            if not entry.name.startswith(".")
        }


@contextmanager
def _entries(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    try:
        found = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        yield iter(())
        return
    with found:
        yield found


def _size_of(entry: os.DirEntry[str]) -> int:
    """Returns the size of a file, links followed; 0 of one that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0
