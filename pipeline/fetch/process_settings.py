"""Settings of this process while it fetches: open files, garbage, the turns of its threads."""

import gc
import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

SPARE_FILES = 256
"""Open files beside the connections: shards, decoders, look-ups of names, the runner's own."""

FILES_PER_CONNECTION = 4
"""Room that is asked for where it is to be had: idle connections stay open for 10 to 20 s, and a
runner may fetch several shards in threads of one process."""

OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""New objects after which cycles are looked for; Python's own 700 cost much of the asking process.

Source: py-spy over the latency part of benchmarks/fetch/run.py.
"""

SECONDS_OF_A_TURN = 0.0005
"""How long a thread keeps the interpreter while another waits for it; 5 ms is Python's own.

The thread that asks gives the interpreter away with every call of the system. While another writes
a finished shard it would get it back for one call in 5 ms: for most of a second, nothing is asked.
Turns of 0.1 ms cost the asking process 17 % of its time (part web of benchmarks/fetch/run.py).
"""

_collecting = threading.Lock()
_fetching = _asking = 0
_usual_thresholds = gc.get_threshold()
_usual_turn = sys.getswitchinterval()
_froze = False


def connections_allowed(wanted: int) -> int:
    """Returns how many connections the system grants, having asked for as many as are wanted.

    A limit on open files would otherwise end as connections that fail, which no host is to blame
    for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed, better = wanted + SPARE_FILES, FILES_PER_CONNECTION * wanted + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= better:
        return wanted
    granted = better if hard == resource.RLIM_INFINITY else min(better, hard)
    if granted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (granted, hard))
    if granted >= needed:
        return wanted
    allowed = max(1, granted - SPARE_FILES, granted // 2)
    logger.warning(
        "%d connections instead of %d: the system lets a process open %d files (ulimit -Hn)",
        allowed,
        wanted,
        granted,
    )
    return allowed


def give_way() -> None:
    """Lets the thread that asks go on, if there is one: called now and then by who works long."""
    if _asking:
        time.sleep(SECONDS_OF_A_TURN)


@contextmanager
def asking() -> Iterator[None]:
    """Takes note that hosts are asked meanwhile: who works beside that gives way."""
    global _asking
    with _collecting:
        _asking += 1
    try:
        yield
    finally:
        with _collecting:
            _asking -= 1


@contextmanager
def settings_of_fetching() -> Iterator[None]:
    """Makes the turns of threads short, and Python look for cyclic garbage less often.

    And only in what is made from now on. Who fetches a shard has these until it is written: else
    all of its rows would be looked through just before they are gone.
    """
    global _fetching, _froze, _usual_thresholds, _usual_turn
    with _collecting:
        if _fetching == 0:
            _usual_thresholds = gc.get_threshold()
            _froze = gc.get_freeze_count() == 0  # else the libraries are set aside already
            if _froze:
                gc.freeze()
            gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *_usual_thresholds[1:])
            _usual_turn = sys.getswitchinterval()
            sys.setswitchinterval(min(SECONDS_OF_A_TURN, _usual_turn))
        _fetching += 1
    try:
        yield
    finally:
        with _collecting:
            _fetching -= 1
            if _fetching == 0:
                gc.set_threshold(*_usual_thresholds)
                sys.setswitchinterval(_usual_turn)
                if _froze:
                    gc.unfreeze()
