import socket
import subprocess
import sys

import pytest

from training.engine import launch

LIVES = "import time; time.sleep(100)"
FAILS = "import sys; sys.exit(3)"


@pytest.mark.parametrize("codes", [[FAILS, LIVES, LIVES], [LIVES, LIVES, FAILS]])
def test_a_failed_process_is_noticed_whichever_it_is(
    codes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_FOLLOW", 0.5)
    children = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        assert launch._wait(children) == 3
        living = [child for child, code in zip(children, codes, strict=True) if code == LIVES]
        assert [child.poll() for child in living] == [None, None]
    finally:
        for child in children:
            child.kill()
            child.wait()


SAVES = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(143)"


@pytest.mark.slow
def test_processes_that_sigterm_stopped_have_time_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SECONDS_TO_FOLLOW", 0.0)
    seconds = ("0", "1")
    children = [subprocess.Popen([sys.executable, "-c", SAVES, wait]) for wait in seconds]
    assert launch._wait(children) == launch.STATUS_TERMINATED == 143
    assert [child.poll() for child in children] == [143, 143]


def test_a_free_port_is_none_that_the_kernel_gives_to_whoever_asks() -> None:
    first = int(launch.PORT_RANGE.read_text().split()[0])
    port = launch.free_port()
    assert launch.FIRST_PORT <= port < max(first, launch.FIRST_PORT + 100)
    with socket.create_server(("127.0.0.1", port)):
        assert launch.free_port() != port
