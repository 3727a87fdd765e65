"""How much memory a process takes."""

import os
from pathlib import Path


def resident_bytes() -> int | None:
    """Returns how much main memory this process holds; None where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:  # not Linux
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
