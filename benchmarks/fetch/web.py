"""Ten shards of a web in which one host in ten hangs and one in twenty takes eight seconds."""

import math
import shutil
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from benchmarks.fetch.measure import Run, measured
from benchmarks.fetch.server import SLOW_SECONDS, WEB_HOSTS, is_hanging, is_slow, web_host
from benchmarks.fetch.sides import our_command, write_pairs
from pipeline.config import FetchConfig

SHARDS = 10
LATENCY_SECONDS = 0.5
RULES = 2
"""Requests for what a host says of itself: robots.txt and tdmrep.json."""


def web_part(
    serving: Callable[[], AbstractContextManager[int]],
    folder: Path,
    images: int,
    rounds: int,
) -> dict[str, Any]:
    """Returns our rate with one shard at a time and with several, beside what connections allow.

    Args:
        serving: gives the port of the server.
    """
    runs: dict[int, list[Run]] = {1: [], FetchConfig().shards_at_once: []}
    with serving() as port:
        urls = [f"http://{web_host(n % WEB_HOSTS)}:{port}/{n}.jpg" for n in range(images)]
        for number in range(rounds):
            for at_once in sorted(runs, reverse=number % 2 == 0):
                root = folder / "web"
                shutil.rmtree(root, ignore_errors=True)
                write_pairs(str(root), urls, images // SHARDS)
                command = our_command(root, port, None, at_once)
                runs[at_once].append(measured(command, root))
    allowed = images / least_seconds(images, WEB_HOSTS, seconds_of_a_host)
    rates = {
        at_once: images / statistics.median(run.working_seconds for run in found)
        for at_once, found in runs.items()
    }
    one, several = rates.values()
    return {
        "images": images,
        "shards": SHARDS,
        "rounds": rounds,
        "connections_allow_per_second": allowed,
        "one_shard_at_a_time_per_second": one,
        "as_it_comes_per_second": several,
        "share_of_what_connections_allow": several / allowed,
        "times_one_shard_at_a_time": several / one,
        "peak_mib": {
            str(at_once): statistics.median(run.peak_bytes for run in found) / 2**20
            for at_once, found in runs.items()
        },
    }


def seconds_of_a_host(host: int) -> float | None:
    """Returns what a host takes for a picture; None if it hangs."""
    if is_hanging(host):
        return None
    return SLOW_SECONDS if is_slow(host) else LATENCY_SECONDS


def least_seconds(images: int, hosts: int, answer_seconds: Callable[[int], float | None]) -> float:
    """Returns what all downloads take if every connection is at work from first to last.

    A host that hangs is asked once for its rules; nothing of it is asked then. No job takes less
    than its slowest host.

    Args:
        hosts: that have as many of the images each.
        answer_seconds: of each host; None if it hangs.
    """
    config = FetchConfig()
    busy = longest = 0.0
    for host in range(hosts):
        count = images // hosts + (host < images % hosts)
        answer = answer_seconds(host)
        if count and answer is None:
            asked = chain = config.timeout_seconds
        elif count:
            rules, answer = RULES * LATENCY_SECONDS, cast(float, answer)
            asked = rules + count * answer
            chain = rules + math.ceil(count / config.connections_per_host) * answer
        else:
            continue
        busy += asked
        longest = max(longest, chain)
    return max(busy / config.connections, longest)
