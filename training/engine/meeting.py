"""How the processes of a run, on one host or several, find each other and see that they agree.

Before anything is loaded, each tells a store (torch's, at MASTER_ADDR and MASTER_PORT) what it is
to do, or why it cannot. The first compares and says what comes of it: all go on, or all end.
From then on they are watched (training/engine/watch.py).
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from schemas.errors import ConfigError, DatasetError
from schemas.progress import at_work
from training.config import ParallelConfig
from training.engine.launch import EarlySigterm, end_before_first_step
from training.engine.place import Place, listen
from training.engine.watch import Watch, watch_others

STATUS_REFUSED = 2
SAME_PACKAGES = ("aligngpt", "torch", "deepspeed", "transformers", "tokenizers")
"""Whose versions decide what is computed, or whether collectives go together."""
SHOWN = 6
"""Most differences, and most processes that are missing, that a message names."""
CONNECT_SECONDS = 20.0
"""Of one attempt to reach the store; between two, a SIGTERM is heard."""
HEAR_SECONDS = 60.0
"""For all processes to read why none begins, before the store goes with the first."""
LOOK_EVERY_SECONDS = 0.1


@contextmanager
def joined(facts: Callable[[], Mapping[str, Any]], parallel: ParallelConfig) -> Iterator[None]:
    """Keeps this process together with the others of its run; alone, it does nothing.

    Args:
        facts: gives what must be the same in all processes, of values that JSON has; may raise
            ConfigError or DatasetError.

    Raises:
        ConfigError: in the first process of each host, if one cannot begin, they do not agree, or
            they do not come together in time; the others end with the same status.
        PeerLost: if another process dies or its host is cut off, and this one hears of it in a
            collective. Where it hangs there, it is ended.
        SystemExit: in all processes, if one was asked to stop.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield
        return
    place = Place.here()
    deadline = time.monotonic() + parallel.join_seconds
    with at_work(f"waiting for all {processes} processes of the run"):
        store = open_store(place, parallel.join_seconds)
        said = _said(place, facts, store)
        watch = _meet(store, place, said, deadline, parallel)
    with watch:
        yield


def _said(place: Place, facts: Callable[[], Mapping[str, Any]], store: Any) -> dict[str, Any]:
    """Returns what a process tells the first: who it is, and what it is to do or why it cannot."""
    said: dict[str, Any] = {"host": place.host, "local_rank": place.local_rank}
    refusal = "it ended before it could begin; what it said last says why"
    is_known = False
    try:
        said["facts"] = {"versions": _versions(), **facts()}
        refusal, is_known = "", True
    except (ConfigError, DatasetError) as error:
        refusal, is_known = str(error), True
    finally:
        said["refusal"] = refusal
        if not is_known:
            _tell(store, place, said)
    return said


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:2]))}
    for name in SAME_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def open_store(place: Place, seconds: float) -> Any:
    """Returns torch's store for the processes of this run, which the first or torchrun holds.

    Raises:
        ConfigError: if another program has its port, or none answers there in so many seconds.
        SystemExit: if this process was asked to stop before one did.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # As torch.distributed.rendezvous has it.
    is_server = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    deadline = time.monotonic() + seconds
    while True:
        patience = min(CONNECT_SECONDS, max(1.0, deadline - time.monotonic()))
        try:
            store = TCPStore(
                address,
                port,
                place.processes,
                is_server,
                timedelta(seconds=patience),
                wait_for_workers=False,
                multi_tenant=True,
            )
            break
        except RuntimeError as error:
            _check_port(error, address, port, place)
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"{place}: no process 0 answered at {address}:{port} (MASTER_ADDR and "
                    f"MASTER_PORT) within {seconds:,.0f} s: its host did not start, cannot be "
                    "reached from here, or another program has that port ("
                    f"{str(error).splitlines()[0]})"
                ) from error
        if _was_asked():
            end_before_first_step()
    store.set_timeout(timedelta(seconds=seconds))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"aligngpt/{attempt}", store)


def _check_port(error: RuntimeError, address: str, port: int, place: Place) -> None:
    if "address already in use" in str(error).lower() or "EADDRINUSE" in str(error):
        raise ConfigError(
            f"another program of {place.host} has port {port} of {address} (MASTER_PORT): name "
            "another by the launcher's --master-port (deepspeed: --master_port)"
        ) from error


def _meet(
    store: Any, place: Place, said: Mapping[str, Any], deadline: float, parallel: ParallelConfig
) -> Watch:
    """Returns the watch over all processes once the first has found that they agree."""
    if place.rank > 0:
        _tell(store, place, said)
        return _as_told(store, place, None, deadline, parallel)
    server, told = listen(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    with server:
        _tell(store, place, said)
        _await(store, lambda: store.add("come", 0) >= place.processes, deadline)
        store.set("verdict", json.dumps({"watch": told, **_verdict(store, place)}))
        return _as_told(store, place, server, deadline, parallel)


def _as_told(
    store: Any,
    place: Place,
    server: socket.socket | None,
    deadline: float,
    parallel: ParallelConfig,
) -> Watch:
    """Returns the watch, or ends this process, as the first process says."""
    if not _await(store, lambda: store.check(["verdict"]), deadline + CONNECT_SECONDS):
        if store.check(["stop"]):
            end_before_first_step()
        raise ConfigError(
            f"{place}: process 0 did not come within {parallel.join_seconds:,.0f} s; what it said "
            "last says why"
        )
    verdict = json.loads(store.get("verdict"))
    if verdict["end"]:
        _end(store, place, verdict)
    places = [Place(**found) for found in verdict["places"]]
    return watch_others(
        places, place.rank, server, verdict["watch"], deadline, parallel.lost_after_seconds
    )


def _tell(store: Any, place: Place, said: Mapping[str, Any]) -> None:
    store.set(f"process/{place.rank}", json.dumps(said))
    store.add("come", 1)


def _await(store: Any, is_so: Callable[[], bool], deadline: float) -> bool:
    """Returns whether something came to be before it was too late, or a process was to stop."""
    while not is_so():
        if _was_asked():
            store.set("stop", "")
        if time.monotonic() >= deadline or store.check(["stop"]):
            return is_so()
        time.sleep(LOOK_EVERY_SECONDS)
    return True


def _was_asked() -> bool:
    handler = signal.getsignal(signal.SIGTERM)
    return isinstance(handler, EarlySigterm) and handler.was_asked


def _end(store: Any, place: Place, verdict: Mapping[str, Any]) -> None:
    """Ends this process; the first of each host says why.

    It goes only once all have heard, or a while later: the store may go with the first.
    """
    store.add("heard", 1)
    deadline = time.monotonic() + HEAR_SECONDS
    if place.rank == 0:
        while store.add("heard", 0) < store.add("come", 0) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_SECONDS)
    if verdict["end"] == "stop":
        end_before_first_step()
    if place.local_rank == 0:
        raise ConfigError(verdict["text"])
    sys.exit(STATUS_REFUSED)


def _verdict(store: Any, place: Place) -> dict[str, Any]:
    """Returns what comes of what all processes said: why they end, or who they are."""
    if store.check(["stop"]):
        return {"end": "stop"}
    keys = [f"process/{rank}" for rank in range(place.processes)]
    missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
    if missing:
        return {"end": "refusal", "text": _missing_words(store, place, missing)}
    said = [json.loads(store.get(key)) for key in keys]
    text = refusal_of(said)
    if text:
        return {"end": "refusal", "text": text}
    places = [
        {"rank": r, "processes": len(said), "local_rank": one["local_rank"], "host": one["host"]}
        for r, one in enumerate(said)
    ]
    return {"end": "", "places": places}


def _missing_words(store: Any, place: Place, missing: Sequence[int]) -> str:
    there = {
        json.loads(store.get(f"process/{rank}"))["host"]
        for rank in range(place.processes)
        if rank not in missing
    }
    return (
        f"{place.processes - len(missing)} of {place.processes} processes came together in time, "
        f"on {', '.join(sorted(there))}; missing: {_numbers(missing)}. Look at what their hosts "
        "say. Slow ones get more time by --parallel.join-seconds"
    )


def _numbers(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:SHOWN]))
    return f"{shown} and {len(ranks) - SHOWN} more" if len(ranks) > SHOWN else shown


def refusal_of(said: Sequence[Mapping[str, Any]]) -> str:
    """Returns why the processes cannot begin together, in words; nothing if they can.

    Args:
        said: of each process, in the order of their numbers.
    """
    refusals = {rank: one["refusal"] for rank, one in enumerate(said) if one["refusal"]}
    if refusals:
        if len(refusals) == len(said) and len(set(refusals.values())) == 1:
            return str(refusals[0])
        rank, text = next(iter(refusals.items()))
        return f"process {rank} ({said[rank]['host']}) cannot begin: {text}"
    for rank, other in enumerate(said):
        found = list(_differences(said[0]["facts"], other["facts"]))
        if found:
            lines = "".join(f"\n  {line}" for line in found[:SHOWN])
            more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            return (
                f"process 0 ({said[0]['host']}) and process {rank} ({other['host']}) do not have "
                f"the same to do:{lines}{more}\nStart the same command, with the same software and "
                "data, on all hosts"
            )
    return ""


def _differences(first: Any, other: Any, name: str = "") -> Iterator[str]:
    if isinstance(first, dict) and isinstance(other, dict):
        for key in sorted(first.keys() | other.keys()):
            yield from _differences(first.get(key), other.get(key), f"{name}.{key}".lstrip("."))
    elif first != other:
        yield f"{name} is {json.dumps(first)} and {json.dumps(other)}"
