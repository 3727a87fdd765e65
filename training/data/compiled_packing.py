"""The packing of many samples, compiled by numba: the same sequences as `packing` gives in Python.

Only those who have many samples import this: it loads a compiler, and the first call compiles.
"""

from typing import Any

import numpy as np
from numba import njit

ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@njit(nogil=True)
def pack_in_place(order: np.ndarray, lengths: np.ndarray, capacity: int, window: int) -> None:
    """Turns an order of samples into those of all sequences in turn, as `packing.pack` packs them.

    The first sample of each sequence becomes `~sample`. What is packed never gets ahead of what has
    arrived, so that one array holds both.
    """
    reachable = np.empty((window + 1) * (capacity // 64 + 1), np.uint64)
    members = np.empty(window, np.int64)
    waiting = np.empty(window, np.int64)
    sizes = np.empty(window, np.int64)
    is_taken = np.empty(window, np.bool_)
    held = arrived = packed = 0
    while True:
        while held < window and arrived < len(order):
            waiting[held] = order[arrived]
            sizes[held] = lengths[order[arrived]]
            held += 1
            arrived += 1
        if held == 0:
            return
        is_taken[:held] = False
        _take_best_subset(sizes[:held], capacity - sizes[0], reachable, members, is_taken)
        order[packed] = ~waiting[0]
        packed += 1
        kept = 0
        for i in range(1, held):
            if is_taken[i]:
                order[packed] = waiting[i]
                packed += 1
            else:
                waiting[kept] = waiting[i]
                sizes[kept] = sizes[i]
                kept += 1
        held = kept


@njit(nogil=True)
def _take_best_subset(
    sizes: np.ndarray,
    room: int,
    reachable: np.ndarray,
    members: np.ndarray,
    is_taken: np.ndarray,
) -> None:
    """Sets which of the waiting, but for the first, are taken.

    Args:
        reachable: place for a row of words for none of them, and for each that alone has room.
        members: place for which of them each of those rows is.
    """
    words = np.uintp(room // 64 + 1)
    reachable[:words] = 0
    reachable[0] = 1
    rows = 0
    for i in range(1, len(sizes)):
        if sizes[i] > room:
            continue
        new = np.uintp(rows + 1) * words
        _add(sizes[i], reachable, new, words)
        reachable[new + words - np.uintp(1)] &= ALL >> np.uint64(63 - room % 64)
        members[rows] = i
        rows += 1
        if _has(reachable, new, room):
            break
    total = room
    while not _has(reachable, np.uintp(rows) * words, total):
        total -= 1
    for row in range(rows - 1, -1, -1):
        if not _has(reachable, np.uintp(row) * words, total):
            is_taken[members[row]] = True
            total -= sizes[members[row]]


@njit(nogil=True)
def _add(size: Any, reachable: np.ndarray, new: Any, words: Any) -> None:
    """Writes a row of words: the one before it, or that moved up by so many bits.

    Indices without a sign let the compiler make vectors of the loops.
    """
    old = new - words
    big, small = np.uintp(size // 64), np.uint64(size % 64)
    for k in range(big):
        reachable[new + k] = reachable[old + k]
    if small == 0:
        for k in range(words - big):
            reachable[new + big + k] = reachable[old + big + k] | reachable[old + k]
        return
    back = np.uint64(64) - small
    reachable[new + big] = reachable[old + big] | (reachable[old] << small)
    for k in range(np.uintp(1), words - big):
        moved = (reachable[old + k] << small) | (reachable[old + k - np.uintp(1)] >> back)
        reachable[new + big + k] = reachable[old + big + k] | moved


@njit(nogil=True)
def _has(reachable: np.ndarray, row: Any, total: int) -> Any:
    word = reachable[row + np.uintp(total // 64)]
    return (word >> np.uint64(total % 64)) & np.uint64(1) == np.uint64(1)
