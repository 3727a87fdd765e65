"""Time that counts against an image, and time that does not."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused(deadline: asyncio.Timeout) -> Iterator[None]:
    """Lets no time of an image pass: what is waited for meanwhile is ours, not its host's."""
    loop = asyncio.get_running_loop()
    left = (deadline.when() or 0.0) - loop.time()
    deadline.reschedule(None)
    try:
        yield
    finally:
        deadline.reschedule(loop.time() + left)
