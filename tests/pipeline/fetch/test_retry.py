import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dataset.worktimes import read_times
from pipeline.fetch.retry import RetrySession, begin_retry, check_reasons, finish_moves, retry_shard
from pipeline.fetch.shard import fetch_shard
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.fetches import (
    committed_bytes,
    config,
    fetched_rows,
    picture,
    rejected_rows,
    stats,
    write_pairs,
)
from tests.web_server import WebServer

AGAIN = RetrySession("first", ())


def broken_rows(server: WebServer, count: int = 12) -> list[tuple[str | None, str]]:
    """Returns rows of pictures of which every third is broken for now, and others for good."""
    rows: list[tuple[str | None, str]] = []
    for number in range(count):
        path = f"/{number}.jpg"
        is_broken = number % 3 == 0
        url = server.serve(path, picture(number), status=500 if is_broken else 200)
        rows.append((url, f"picture {number}"))
    rows.append((server.url("/gone.jpg"), "gone"))
    rows.append((server.serve("/no.jpg", picture(99), {"X-Robots-Tag": "noai"}), "opted out"))
    rows.append((None, "text alone"))
    return rows


def mend(server: WebServer, count: int = 12) -> None:
    for number in range(count):
        server.serve(f"/{number}.jpg", picture(number))


def broken_shard(server: WebServer, root: Path) -> DatasetLayout:
    layout = DatasetLayout(str(root))
    write_pairs(layout, broken_rows(server))
    fetch_shard(layout, 0, config(server, retries=0))
    assert len(fetched_rows(layout)) == 9
    return layout


@pytest.mark.slow
def test_a_retried_shard_is_what_it_would_have_been_had_nothing_failed(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = broken_shard(web_server, tmp_path / "retried")
    mend(web_server)
    retry_shard(layout, 0, config(web_server, retries=0), AGAIN)
    healthy = DatasetLayout(str(tmp_path / "healthy"))
    write_pairs(healthy, broken_rows(web_server))
    mend(web_server)
    fetch_shard(healthy, 0, config(web_server, retries=0))
    assert committed_bytes(layout)[0] == committed_bytes(healthy)[0]
    assert fetched_rows(layout) == fetched_rows(healthy)
    assert rejected_rows(layout) == rejected_rows(healthy)
    counts = stats(layout)
    assert (counts["count"], counts["successes"], counts["kept"]) == (15, 13, 13)
    assert counts["rejected"] == {"http_status": 1, "opted_out_by_header": 1}


@pytest.mark.slow
def test_a_retry_asks_for_what_may_have_passed_and_for_nothing_else(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = broken_shard(web_server, tmp_path)
    mend(web_server)
    web_server.requests.clear()
    retry_shard(layout, 0, config(web_server, retries=0), AGAIN)
    asked = {path for path in web_server.paths() if path.endswith(".jpg")}
    assert asked == {"/0.jpg", "/3.jpg", "/6.jpg", "/9.jpg"}
    fetched, again = read_times(layout, Stage.FETCH)
    assert (fetched.step, fetched.rows) == ("fetch", 15)
    assert (again.step, again.pieces, again.rows) == ("retry", 1, 4)
    assert again.bytes == sum(len(picture(number)) for number in (0, 3, 6, 9))
    assert again.seconds > again.first_seconds > 0


@pytest.mark.slow
def test_reasons_choose_what_is_asked_for_again(web_server: WebServer, tmp_path: Path) -> None:
    layout = broken_shard(web_server, tmp_path)
    mend(web_server)
    web_server.serve("/gone.jpg", picture(50))
    retry_shard(layout, 0, config(web_server), RetrySession("one", check_reasons(["http_status"])))
    assert len(fetched_rows(layout)) == 10
    assert {row["reason"] for row in rejected_rows(layout)} == {
        "server_error",
        "opted_out_by_header",
    }


@pytest.mark.parametrize("reason", ["robots_disallowed", "opted_out_by_header", "tdm_reserved"])
def test_what_a_host_has_opted_out_of_is_never_asked_twice(reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_reasons([reason])


def test_a_shard_that_gains_nothing_keeps_its_files_and_its_fingerprint(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = broken_shard(web_server, tmp_path)
    before, fingerprint = committed_bytes(layout), stats(layout)["fingerprint"]
    retry_shard(layout, 0, config(web_server, retries=0), AGAIN)
    assert committed_bytes(layout) == before
    assert stats(layout)["fingerprint"] == fingerprint
    assert stats(layout)["retry"] == {"token": "first", "asked": 4, "gained": 0}


@pytest.mark.slow
def test_a_retried_shard_is_not_fetched_again_but_is_new_to_later_stages(
    web_server: WebServer, tmp_path: Path
) -> None:
    layout = broken_shard(web_server, tmp_path)
    first = stats(layout)["fingerprint"]
    mend(web_server)
    retry_shard(layout, 0, config(web_server, retries=0), AGAIN)
    assert stats(layout)["fingerprint"] != first
    web_server.requests.clear()
    fetch_shard(layout, 0, config(web_server, retries=0))
    retry_shard(layout, 0, config(web_server, retries=0), RetrySession("second", ()))
    assert web_server.requests == []


def test_one_session_asks_no_shard_twice(web_server: WebServer, tmp_path: Path) -> None:
    layout = broken_shard(web_server, tmp_path)
    session = begin_retry(layout, ())
    retry_shard(layout, 0, config(web_server, retries=0), session)
    web_server.requests.clear()
    assert begin_retry(layout, ()) == session
    retry_shard(layout, 0, config(web_server, retries=0), begin_retry(layout, ()))
    assert web_server.requests == []
    assert begin_retry(layout, ("timed_out",)).token != session.token


KILLED_AT_A_CHANGE = """
import os, signal, sys
from pipeline.config import FetchConfig
from pipeline.fetch.retry import RetrySession, retry_shard
from schemas.shards import DatasetLayout

def kill_before_change(number, root):
    left = [number]
    def watch(event, arguments):
        is_change = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        path = str(arguments[0]) if is_change else ""
        if path.startswith(root) and "progress" not in path:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)

port = int(sys.argv[1])
config = FetchConfig(
    allow_networks=("127.0.0.2/32",), allow_ports=(port,), decode_processes=1, image_size=64,
    retries=0,
)
for number, root in enumerate(sys.argv[2:]):
    child = os.fork()
    if child == 0:
        kill_before_change(number, root)
        retry_shard(DatasetLayout(root), 0, config, RetrySession("first", ()))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_a_retry_that_is_killed_before_any_of_its_changes_is_finished_by_the_next_job(
    web_server: WebServer, tmp_path: Path
) -> None:
    broken = broken_shard(web_server, tmp_path / "broken")
    mend(web_server)
    roots = [tmp_path / f"killed-{number:02d}" for number in range(32)]
    for root in (*roots, tmp_path / "undisturbed"):
        shutil.copytree(broken.root, root)
    undisturbed = DatasetLayout(str(tmp_path / "undisturbed"))
    retry_shard(undisturbed, 0, config(web_server, retries=0), AGAIN)
    words = [sys.executable, "-c", KILLED_AT_A_CHANGE, str(web_server.port), *map(str, roots)]
    statuses = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    kills = statuses.count("-9")
    assert statuses == ["-9"] * kills + ["0"] * (len(roots) - kills)
    assert 12 <= kills < len(roots)
    for root in roots[:kills]:
        layout = DatasetLayout(str(root))
        finish_moves(layout)
        fetch_shard(layout, 0, config(web_server, retries=0))
        retry_shard(layout, 0, config(web_server, retries=0), AGAIN)
        assert committed_bytes(layout) == committed_bytes(undisturbed), root.name
        assert stats(layout)["retry"] == stats(undisturbed)["retry"]
        assert not (root / "_run" / "retry" / "00000").exists()


def test_new_files_that_are_not_complete_are_dropped(web_server: WebServer, tmp_path: Path) -> None:
    layout = broken_shard(web_server, tmp_path)
    before = committed_bytes(layout)
    aside = tmp_path / "_run" / "retry" / "00000"
    aside.mkdir(parents=True)
    (aside / "new.tar").write_bytes(b"half")
    finish_moves(layout)
    assert committed_bytes(layout) == before
    assert not aside.exists()
