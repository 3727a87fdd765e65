"""How a process deals with the memory that it frees, and with what is never freed."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4
M_ARENA_MAX = -8
"""Parameters of glibc's mallopt. Source: malloc.h."""

AT_START = {"MALLOC_ARENA_MAX": "1"}
"""Environment of a process that is to keep freed memory, before it begins.

A heap of its own that a library's thread has by the time of `keep_freed_memory` is given to
others later, and what does not fit there is mapped anew each time.
"""

KEEPING_ALL = (
    (M_MMAP_MAX, 0),
    (M_TRIM_THRESHOLD, 2**31 - 1),
    (M_TOP_PAD, 128 * 2**20),
    # Another thread's heap holds 64 MiB at most: larger tensors would be mapped after all.
    (M_ARENA_MAX, 1),
)
KEEPING_IMAGES = (
    (M_MMAP_THRESHOLD, 32 * 2**20),
    (M_TRIM_THRESHOLD, 64 * 2**20),
    (M_TOP_PAD, 16 * 2**20),
)


def keep_freed_memory() -> bool:
    """Returns whether glibc was told to keep freed memory instead of giving it back.

    A model frees its large tensors with every batch and asks for the same again. By default each
    is mapped anew, and the kernel clears its pages: of scoring with RN50 this took two fifths
    (`benchmarks/score_memory.py`). The process keeps what it once needed at most.
    To be called before numpy's and Arrow's import, which start threads, unless the process was
    started with `AT_START`.
    """
    return _set(KEEPING_ALL)


def keep_memory_of_images() -> bool:
    """Returns whether glibc was told to keep what one image takes.

    The same for a process that decodes one image after another. What is larger than 32 MiB, as
    few images are, is still given back at once, so that the process stays small.
    """
    return _set(KEEPING_IMAGES)


@contextmanager
def large_imports() -> Iterator[None]:
    """Imports what a block names without looking for garbage meanwhile, or in it ever after.

    Large libraries make a million objects that stay. Python would look through them time and
    again while they are made: a fifth of the processor time that torch and open_clip take to
    start, or Beam's worker.
    """
    known, was_enabled = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        if was_enabled:
            gc.enable()


def _set(settings: tuple[tuple[int, int], ...]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(name, value) for name, value in settings)
